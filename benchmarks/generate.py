"""Tokens per second of the native engine against transformers' `generate`, on a random model of SmolLM2-135M's shape.

Run as `python benchmarks/generate.py`. Both sides sample the same number of tokens (no end-of-sequence id) from the
same prompts at temperature 1, in turn; the medians, their ratio and the engine's gap to the plain forward are printed.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from tokenizers import Tokenizer, models
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from posttrain.engines.native import NativeEngine
from posttrain.models.lm import LoadedModel
from posttrain.records import Completion, Prompt
from posttrain.settings import EngineSettings, SamplingSettings

VOCAB_SIZE = 49_152


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prompts", type=int, default=4)
    parser.add_argument("--samples", type=int, default=4)
    parser.add_argument("--prompt-length", type=int, default=150)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--dtype", choices=["bfloat16", "float32"], default="bfloat16")
    arguments = parser.parse_args()
    policy = random_policy(getattr(torch, arguments.dtype))
    ids = torch.randint(VOCAB_SIZE, (arguments.prompts, arguments.prompt_length), device=policy.device)
    prompts = [Prompt(str(index), tuple(row), "", {}) for index, row in enumerate(ids.tolist())]
    sampling = SamplingSettings(max_completion_length=arguments.tokens)
    seeds = [[prompt * arguments.samples + sample for sample in range(arguments.samples)] for prompt in range(len(ids))]
    engine = NativeEngine(policy, EngineSettings())

    def native() -> list[list[Completion]]:
        return engine.generate(prompts, sampling, num_samples=arguments.samples, seeds=seeds)

    def peer() -> torch.Tensor:
        return policy.model.generate(  # type: ignore[operator]
            ids,
            attention_mask=torch.ones_like(ids),
            num_return_sequences=arguments.samples,
            do_sample=True,
            top_k=0,
            min_new_tokens=arguments.tokens,
            max_new_tokens=arguments.tokens,
            pad_token_id=0,
        )

    assert peer().shape == (arguments.prompts * arguments.samples, arguments.prompt_length + arguments.tokens)
    print(f"engine log-probs against the plain forward: mean gap {mean_gap(policy, prompts[0], native()[0][0]):.2e}")
    seconds = alternate({"native": native, "transformers": peer}, arguments.repeats)
    tokens = arguments.prompts * arguments.samples * arguments.tokens
    for name, times in seconds.items():
        middle = statistics.median(times)
        print(f"{name:>12}: {middle:6.2f} s, {tokens / middle:7.0f} tokens/s  ({min(times):.2f} to {max(times):.2f} s)")
    print(f"       ratio: {statistics.median(seconds['transformers']) / statistics.median(seconds['native']):.2f}")


def random_policy(dtype: torch.dtype) -> LoadedModel:
    """Return a random Llama of SmolLM2-135M's shape that never ends a completion."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        max_position_embeddings=8192,
        rope_parameters={"rope_type": "default", "rope_theta": 100_000.0},
        tie_word_embeddings=True,
        eos_token_id=None,
        bos_token_id=None,
    )
    model = LlamaForCausalLM(config).to(device, dtype).eval()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE(vocab={"a": 0}, merges=[])))
    return LoadedModel(model, tokenizer, device, dtype, frozenset(), 0, "tree")


@torch.no_grad()
def mean_gap(policy: LoadedModel, prompt: Prompt, completion: Completion) -> float:
    """Return the mean absolute difference between the engine's log-probs and those of one plain forward."""
    ids = torch.tensor([[*prompt.ids, *completion.ids]], device=policy.device)
    logits = policy.model(input_ids=ids, use_cache=False).logits[0, len(prompt.ids) - 1 : -1].float()
    expected = logits.log_softmax(-1).gather(1, ids[0, len(prompt.ids) :, None]).squeeze(1)
    return float((expected - torch.tensor(completion.engine_logprobs, device=policy.device)).abs().mean())


def alternate(sides: dict[str, Callable[[], object]], repeats: int) -> dict[str, list[float]]:
    """Return the seconds of each run of each side, run in turn so that the machine's mood is shared."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(repeats):
        for name, run in sides.items():
            start = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - start)
    return seconds


if __name__ == "__main__":
    main()
