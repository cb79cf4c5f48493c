"""The command line: one verb for each stage, and what reads their results.

Floor 7: parses and prints, no more. Libraries are imported inside the verbs, so that help needs no torch.
"""

import difflib
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import App, CycloptsError, Group, Parameter

from posttrain import __version__
from posttrain.cli.data import data_app
from posttrain.cli.grading import grade, rescore
from posttrain.cli.parsing import JsonFlag, Overrides, parsed, print_result
from posttrain.cli.reports import card, compare
from posttrain.cli.rewards import rewards_app
from posttrain.cli.rollouts import rollouts
from posttrain.cli.scoring import score
from posttrain.errors import ConfigError, PosttrainError

if TYPE_CHECKING:
    from cyclopts.help import HelpPanel
    from rich.console import Console, ConsoleOptions

    from posttrain.pipeline.recipe import Recipe

app = App(
    name="posttrain",
    help="Teach small language models from feedback, and see honestly whether it worked.\n\n"
    "posttrain VERB --help lists a verb's options; --debug after any verb prints the traceback of an error.",
    version=__version__,
    default_parameter=Parameter(negative=()),
    help_format="plaintext",  # markdown would cost 30 ms
    suppress_keyboard_interrupt=False,
)


@Parameter(name="*")
@dataclass(frozen=True)
class RunOptions:
    """Options of every verb that runs stages."""

    name: str | None = None
    """Name of the run: its directory under runs_dir."""
    runs_dir: Annotated[Path, Parameter(name=("--runs-dir", "--runs_dir"))] = Path("runs")
    """Where runs lie."""
    overwrite: bool = False
    """Delete the stages whose settings changed, and run them anew."""
    dry_run: Annotated[bool, Parameter(name=("--dry-run", "--dry_run"))] = False
    """Print every setting with its origin and one rendered example; start nothing."""
    display: Literal["auto", "full", "plain", "none"] = "auto"
    """Live panel on a terminal, plain lines in a pipe."""


OPTION_FLAGS = (
    "--name",
    "--runs-dir",
    "--overwrite",
    "--dry-run",
    "--display",
    "--config",
    "--json",
    "--debug",
    "--help",
)


@app.command
def run(recipe: Path, *overrides: Overrides, options: RunOptions = RunOptions()) -> None:
    """Run the stages of a recipe in order; the same command again continues where it ended.

    Settings are overridden by dotted flags: --stage.grpo.learning_rate 1e-5

    Parameters
    ----------
    recipe
        A TOML file with a table for each stage.
    """
    from posttrain.pipeline.recipe import load_recipe

    _refuse_mistyped_options(overrides)
    _start(load_recipe(recipe, overrides, name=options.name), options)


def _stage_verb(type_name: str) -> Callable[..., None]:
    """Return the verb that runs one stage of a type by itself."""
    settings_group = Group("Settings", help_formatter=SettingsHelp(type_name), sort_key=1)

    def verb(
        *overrides: Annotated[str, Parameter(allow_leading_hyphen=True, group=settings_group)],
        config: Annotated[Path | None, Parameter(help="TOML file of the stage's settings.")] = None,
        options: RunOptions = RunOptions(),
        as_json: JsonFlag = False,
    ) -> None:
        from posttrain.pipeline.recipe import single_stage

        _refuse_mistyped_options(overrides)
        _start(single_stage(type_name, config, overrides, name=options.name or type_name), options, as_json=as_json)

    return verb


@dataclass(frozen=True)
class SettingsHelp:
    """Prints the settings of a stage type, with type, default and meaning, as the help panel of a verb."""

    type_name: str

    def __call__(self, console: "Console", options: "ConsoleOptions", panel: "HelpPanel") -> None:
        from rich.table import Table

        from posttrain.config import field_help
        from posttrain.pipeline.stages import STAGE_TYPES

        console.print("[bold]Settings[/bold], as --key value or lines of the config file", highlight=False)
        table = Table.grid(padding=(0, 2, 0, 0))
        table.add_column(no_wrap=True, style="cyan")
        table.add_column()
        heading = ""
        for row in sorted(field_help(STAGE_TYPES[self.type_name].settings), key=lambda row: "." in row.key):
            if (section := row.key.rpartition(".")[0]) != heading:
                heading = section
                table.add_row(f"\n{section}", "", style="bold")
            meaning = f"{row.doc} " if row.doc else ""
            table.add_row(f"  --{row.key}", f"{meaning}[dim]{_escape(f'({row.type}; default {row.default})')}[/dim]")
        console.print(table, highlight=False)


def _escape(text: str) -> str:
    from rich.markup import escape

    return escape(text)


STAGE_HELP = {
    "pretrain": "Train a small language model from scratch on the nano corpus.",
    "sft": "Fine-tune a model on completions, conversations or text.",
    "rm": "Train a reward model on preference pairs, and measure it on held-out ones.",
    "dpo": "Train a model on preference pairs, or on judged completions, without a reward model.",
    "grpo": "Train a model by group-relative policy optimisation, with programs or a reward model as rewards.",
    "ppo": "Train a model by proximal policy optimisation: a critic, a KL penalty, programs or a reward model.",
    "eval": "Measure a model on a task: answers graded, scored by rewards, or chosen by log-prob.",
    "frontier": "Follow the policies that a stage kept: reward and true score against the KL to the start.",
}
for _type_name, _help in STAGE_HELP.items():
    app.command(_stage_verb(_type_name), name=_type_name, help=_help)


def _start(recipe: "Recipe", options: RunOptions, *, as_json: bool = False) -> None:
    """Run a recipe, or say what it would do."""
    if options.dry_run:
        from posttrain.pipeline.preview import preview

        for line in preview(recipe, options.runs_dir):
            print(line)
        print("nothing was started; run it without --dry-run")
        return
    from posttrain.pipeline.runner import run_recipe, summary_of
    from posttrain.runs.display import make_display

    directory = run_recipe(recipe, options.runs_dir, overwrite=options.overwrite, display=make_display(options.display))
    found = {"directory": str(directory), "summary": summary_of(directory / recipe.stages[-1].name)}
    print_result(found, str(directory), as_json=as_json)


def _refuse_mistyped_options(overrides: Sequence[str]) -> None:
    """Raise ConfigError for what is nearly an option of the verb: it would be taken for a setting's key."""
    for token in overrides:
        flag = token.partition("=")[0]
        if near := difflib.get_close_matches(flag, OPTION_FLAGS, n=1, cutoff=0.85):
            raise ConfigError(f"unknown option {flag}; did you mean {near[0]}?")


@app.command
def generate(
    *sampling: Overrides,
    model: Annotated[str, Parameter(help="Directory or name of the model.")],
    prompt: Annotated[str | None, Parameter(help="Text to complete; without it, standard input.")] = None,
    chat: Annotated[bool, Parameter(help="Send the text as a user's turn in the chat template.")] = False,
    num_samples: Annotated[int, Parameter(name=("--num-samples", "--num_samples"), help="Completions to draw.")] = 1,
    seed: Annotated[int, Parameter(help="Seed of the draws.")] = 0,
    as_json: JsonFlag = False,
) -> None:
    """Sample completions of a prompt. Sampling flags: --temperature, --top_p, --max_completion_length, ..."""
    from posttrain.settings import ModelSettings, SamplingSettings

    settings = parsed(SamplingSettings, sampling, "posttrain generate")
    text = sys.stdin.read().removesuffix("\n") if prompt is None else prompt
    from posttrain.pipeline.completions import complete

    named = ModelSettings(name_or_path=model)
    completions = complete(text, named, settings, chat=chat, num_samples=num_samples, seed=seed)
    for completion in completions:
        ending = {"stop_reason": str(completion.stop_reason), "tokens": len(completion.ids)}
        print_result({"prompt": text, "completion": completion.text, **ending}, completion.text, as_json=as_json)


app.command(data_app)
app.command(rewards_app)
app.command(score)
app.command(rollouts)
app.command(compare)
app.command(card)
app.command(grade)
app.command(rescore)


@app.command
def export(
    model: str,
    *,
    out: Annotated[Path, Parameter(help="Directory to write, in the Hugging Face layout.")],
    dtype: Annotated[Literal["bfloat16", "float32"], Parameter(help="Precision of the written weights.")] = "bfloat16",
    compare_4bit: Annotated[
        bool,
        Parameter(name=("--compare-4bit", "--compare_4bit"), help="Compare with its base in 4 bits too."),
    ] = False,
    as_json: JsonFlag = False,
) -> None:
    """Merge a trained adapter into its base and write one plain model, after comparing the two.

    Parameters
    ----------
    model
        Directory of a stage, such as runs/demo/dpo, or of an adapter or a model.
    """
    from posttrain.pipeline.export import export as write_export
    from posttrain.pipeline.export import report_lines

    report = write_export(model, out, dtype=dtype, compare_4bit=compare_4bit)
    print_result(report, "\n".join(report_lines(report)), as_json=as_json)


@app.command
def bench(
    recipe: Annotated[str, Parameter(help="A recipe, or the directory or name of a model.")],
    *overrides: Overrides,
    name: Annotated[str | None, Parameter(help="Name of the run whose finished stages are used.")] = None,
    runs_dir: Annotated[Path, Parameter(name=("--runs-dir", "--runs_dir"), help="Where runs lie.")] = Path("runs"),
    as_json: JsonFlag = False,
) -> None:
    """Measure this machine on a recipe's stages: tokens per second, memory, estimated time; nothing is kept.

    Settings are overridden by dotted flags: --stage.grpo.num_generations 16
    """
    from posttrain.pipeline.recipe import load_recipe

    _refuse_mistyped_options(overrides)
    known = load_recipe(recipe, overrides, name=name) if recipe.endswith(".toml") else None
    from rich.console import Console

    from posttrain.pipeline.bench import bench as measure
    from posttrain.pipeline.bench import recipe_of_model
    from posttrain.pipeline.bench_pages import as_json as bench_json
    from posttrain.pipeline.bench_pages import print_bench
    from posttrain.runs.display import make_display

    found = measure(known or recipe_of_model(recipe, overrides), runs_dir, tell=make_display().message)
    if as_json:
        print(bench_json(found))
    else:
        print_bench(found, Console())


@app.command
def doctor(*, as_json: JsonFlag = False) -> None:
    """Print versions, devices, precision, cores, memory, disk and offline state, to paste into a report."""
    from posttrain.pipeline.doctor import diagnose

    facts = diagnose()
    width = max(map(len, facts))
    lines = [
        f"{name:{width}}  {', '.join(value) if isinstance(value, list) else value}" for name, value in facts.items()
    ]
    print_result(facts, "\n".join(lines), as_json=as_json)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit: 0 done, else the code of the error (see `errors.py`)."""
    tokens = list(sys.argv[1:] if arguments is None else arguments)
    if not sys.stderr.isatty():
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # transformers' bars obey it too
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"transformers\.")  # for peft's authors, not users
    debug = "--debug" in tokens
    tokens = [token for token in tokens if token != "--debug"]
    try:
        app(tokens, exit_on_error=False, print_error=False, result_action="return_none")
        sys.stdout.flush()
    except CycloptsError as error:
        _fail(str(error), 2, debug=debug)
    except PosttrainError as error:
        _fail(str(error), error.exit_code, debug=debug)
    except KeyboardInterrupt:
        _fail("stopped by Ctrl-C", 130, debug=debug)
    except BrokenPipeError:  # the reader of a pipe has gone, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is still buffered goes nowhere
        sys.exit(1)
    except Exception as error:
        where = next((note for note in getattr(error, "__notes__", ()) if note.startswith("traceback: ")), None)
        text = " ".join(str(error).split())
        _fail(f"{type(error).__name__}: {text}\n  {where or 'traceback: --debug prints it'}", 1, debug=debug)
    sys.exit(0)


def _fail(message: str, code: int, *, debug: bool) -> None:
    """Print an error on stderr and exit; called while the exception is handled."""
    if debug:
        import traceback

        traceback.print_exc()
    print(f"error: {message}", file=sys.stderr)
    sys.exit(code)
