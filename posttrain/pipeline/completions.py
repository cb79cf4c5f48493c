"""Sample completions of one prompt from a model, as the command `generate` prints them.

Floor 6: model, renderer and engine together; writes no file.
"""

from posttrain.data.chat import render_prompt
from posttrain.data.rows import Row
from posttrain.engines import ENGINES
from posttrain.errors import DataError
from posttrain.models.lm import load_model
from posttrain.records import Completion, Message
from posttrain.seeds import derive_seed
from posttrain.settings import EngineSettings, ModelSettings, SamplingSettings


def complete(
    text: str, model: ModelSettings, sampling: SamplingSettings, *, chat: bool, num_samples: int, seed: int
) -> list[Completion]:
    """Return completions of a text, as it stands or as a user's turn in the model's chat template."""
    if not text:
        raise DataError("the prompt is empty", fix='posttrain generate --model DIR --prompt "..."')
    policy = load_model(model, seed=seed, trainable=False)
    content = (Message(role="user", content=text),) if chat else text
    prompt = render_prompt(Row("prompt", "prompt", "the prompt", prompt=content), policy.tokenizer)
    engine = ENGINES["native"](policy, EngineSettings(), lambda: False)
    del policy  # the engine keeps the weights
    try:
        seeds = [[derive_seed(seed, "generate", sample) for sample in range(num_samples)]]
        return engine.generate([prompt], sampling, num_samples=num_samples, seeds=seeds)[0]
    finally:
        engine.close()
