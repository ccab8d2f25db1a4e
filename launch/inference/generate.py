"""`translution generate`: text from a run's net or an export, printed as it comes."""

import sys
import time
from collections.abc import Iterator
from pathlib import Path

from launch.inference.load import find_net
from launch.inference.words import words_of
from models import GPT, GPTConfig
from models.decoding.generation import Choice, generate, recomputed_mixers
from parallel.errors import UserError


def generate_text(
    path: Path,
    prompt: str,
    tokens: int,
    temperature: float,
    top_k: int | None,
    seed: int,
    bpe: Path | None,
    device: str,
    cached: bool,
) -> None:
    """Print the prompt and `tokens` more tokens on stdout, and the speed on stderr.

    Raises UserError for a net that is none of language, and for a prompt longer than its context.
    """
    saved = find_net(path, device)
    if not isinstance(saved.model, GPTConfig):
        raise UserError(f"{path}: holds a net for images; try translution predict")
    words = words_of(saved.model, saved.data, bpe)
    ids, context = words.encode(prompt) or [words.separator], saved.model.tokens
    if len(ids) > context:
        raise UserError(f"--prompt: has {len(ids)} tokens, the net's context model.tokens={context}")
    net = saved.load()
    assert isinstance(net, GPT)
    if cached and (slow := recomputed_mixers(net)):
        print(f"{', '.join(slow)} has no cache: it mixes all tokens again for each one", file=sys.stderr)
    drawn = generate(net, ids, Choice(temperature, top_k, words.count), seed, tokens, cached)
    print(prompt, end="", flush=True)
    clock = _Clock()
    try:
        for text in words.stream(clock.timing(drawn)):
            print(text, end="", flush=True)
        print(flush=True)
    except BrokenPipeError:  # `| head` has seen enough
        sys.stdout = None  # pyright: ignore[reportAttributeAccessIssue]
        return
    print(clock.line("with a cache" if cached else "without a cache"), file=sys.stderr)


class _Clock:
    """Times the prompt with the first token, and all tokens after it."""

    def __init__(self) -> None:
        self._start, self._first, self._count = time.perf_counter(), 0.0, 0

    def timing(self, ids: Iterator[int]) -> Iterator[int]:
        for each in ids:
            self._count += 1
            if self._count == 1:
                self._first = time.perf_counter() - self._start
            yield each

    def line(self, how: str) -> str:
        rest = time.perf_counter() - self._start - self._first
        rate = f", then {(self._count - 1) / max(rest, 1e-9):,.1f} tokens/s {how}" if self._count > 1 else ""
        return f"{self._count} tokens; the first after {1000 * self._first:.0f} ms{rate}"
