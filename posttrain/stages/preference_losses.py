"""The losses of the DPO stage by name: what each compares, its usual temperature, and which settings it reads.

Floor 5: names and numbers alone, no torch, so that settings are checked before anything is loaded.
"""

from dataclasses import dataclass

from posttrain.settings import DpoSettings


@dataclass(frozen=True, slots=True)
class PreferenceLoss:
    """One entry of the table; a completion's score is its log-prob, less the reference's where `reference`."""

    beta: float
    reference: bool = True
    per_token: bool = False  # the score is divided by the number of tokens
    smoothed: bool = False  # reads label_smoothing
    paired: bool = True  # compares the two completions of a pair


PREFERENCE_LOSSES: dict[str, PreferenceLoss] = {
    "sigmoid": PreferenceLoss(beta=0.1, smoothed=True),
    "sigmoid_norm": PreferenceLoss(beta=5.0, per_token=True, smoothed=True),
    "robust": PreferenceLoss(beta=0.1, smoothed=True),
    "ipo": PreferenceLoss(beta=0.1, per_token=True),
    "hinge": PreferenceLoss(beta=0.1),
    "simpo": PreferenceLoss(beta=2.0, reference=False, per_token=True),
    "orpo": PreferenceLoss(beta=0.1, reference=False, per_token=True),
    "kto": PreferenceLoss(beta=0.1, paired=False),
    "sft": PreferenceLoss(beta=1.0, reference=False, paired=False),
}


def main_loss(settings: DpoSettings) -> str:
    """Return the loss whose rewards are logged: the first that is more than the SFT term."""
    return next(name for name in settings.losses if name != "sft")


def beta_of(name: str, settings: DpoSettings) -> float:
    """Return the temperature of a loss under the settings."""
    return PREFERENCE_LOSSES[name].beta if settings.beta is None else settings.beta


def needs_reference(settings: DpoSettings) -> bool:
    """Return whether any of the losses compares with the reference."""
    return any(PREFERENCE_LOSSES[name].reference for name in settings.losses)


def needs_pairs(settings: DpoSettings) -> bool:
    """Return whether any of the losses compares the completions of a pair."""
    return any(PREFERENCE_LOSSES[name].paired for name in settings.losses)
