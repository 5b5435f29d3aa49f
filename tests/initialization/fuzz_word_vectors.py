"""Reads mutated files of word vectors: ``python tests/initialization/fuzz_word_vectors.py [--files N] [--seed S]``.

Every file must be read, or be refused with a ValueError that names it and, in text, the line; within seconds, and
within 100 MB of memory beyond what the process held at the start (the files are small).
"""

from __future__ import annotations

import argparse
import gzip
import random
import re
import resource
import signal
import sys
import tempfile
import time
import warnings
from collections import Counter
from pathlib import Path

import numpy as np
from gensim.models import FastText
from gensim.models.fasttext import save_facebook_model
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).parent))
from test_vector_text import SNIPPETS
from test_word_vectors import KEYS, WORDS, table, write

from ofa_fast.initialization import WordVectors

SECONDS = 5
EXTRA_BYTES = 100 << 20  # of resident memory
EXTRA_ADDRESSES = 1 << 30  # so that a mistake does not take the machine's memory
WITHOUT_LINE = r"the file is empty|no words|gzip|holds NaN or infinity|a language must be"


def seeds(folder: Path) -> list[tuple[str, bytes]]:
    """Whole files of every format, by the suffix that tells it."""
    found = []
    for words in (WORDS, KEYS):
        for suffix in (".vec", ".txt", ".bin", ".wv", ".npz", ".safetensors"):
            path = write(folder / f"whole{suffix}", words, table(len(words)))
            found.append((suffix, path.read_bytes()))
        WordVectors(words, table(len(words))).save(folder / "bytes.safetensors", np.int8)
        found.append((".safetensors", (folder / "bytes.safetensors").read_bytes()))
    model = FastText([WORDS] * 5, vector_size=6, bucket=50, min_count=1, epochs=1, workers=1, seed=1)
    save_facebook_model(model, str(folder / "fasttext.bin"))
    found.append((".bin", (folder / "fasttext.bin").read_bytes()))
    return found


def mutate(data: bytes, rng: random.Random) -> bytes:
    out = bytearray(data)
    for _ in range(rng.choice([1, 1, 1, 1, 2, 4, 16])):
        at = rng.randrange(len(out) + 1)
        match rng.randrange(7):
            case 0 if at < len(out):
                out[at] ^= 1 << rng.randrange(8)
            case 1:
                out[at : at + rng.choice([1, 4, 8])] = rng.randbytes(rng.choice([1, 4, 8]))
            case 2:
                out[at : at + rng.randrange(20)] = b""
            case 3:
                out[at:at] = out[max(0, at - rng.randrange(200)) : at]
            case 4:
                del out[at:]
            case 5:
                out[at:at] = rng.choice(SNIPPETS)
            case _:
                number = rng.choice([0, 1, 255, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**64 - 1])
                width = 4 if number < 2**32 else 8
                out[at : at + width] = number.to_bytes(width, "little")
    return bytes(out)


def check(path: Path, rng: random.Random) -> str:
    """ "read" or the kind of refusal; anything else than a ValueError that names the file is raised."""
    try:
        if path.suffix == ".bin" and rng.random() < 0.2:
            vectors = WordVectors.from_fasttext(path, [*WORDS, "unseen"])
        else:
            vectors = WordVectors.load(path, folder=rng.choice([None, path.parent]))
    except ValueError as error:
        assert path.name in str(error), f"the message does not name the file: {error}"
        assert len(str(error)) < 2000, f"a message of {len(str(error))} characters"
        if path.name.removesuffix(".gz").endswith((".vec", ".txt")):
            assert re.search(rf", line \d+: |{WITHOUT_LINE}", str(error)), f"the message names no line: {error}"
        return "refused"
    assert np.isfinite(vectors.vectors).all() and len(vectors.words) == len(vectors.vectors)
    assert all(isinstance(word, str) for word in vectors.words)
    return "read"


def peak_memory() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--files", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()

    def too_slow(*_):
        raise TimeoutError(f"longer than {SECONDS} s")

    signal.signal(signal.SIGALRM, too_slow)
    warnings.simplefilter("ignore")
    counts: Counter = Counter()
    slowest = (0.0, -1)
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        whole = seeds(folder)
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + EXTRA_ADDRESSES, resource.RLIM_INFINITY))
        base = peak_memory()
        for number in tqdm(range(args.files)):
            rng = random.Random(f"{args.seed}-{number}")
            suffix, data = rng.choice(whole)
            data = mutate(data, rng)
            packed = rng.random() < 0.1
            path = folder / f"mutated{suffix}{'.gz' * packed}"
            if packed:
                data = gzip.compress(data, 1)
                data = mutate(data, rng) if rng.random() < 0.3 else data
            path.write_bytes(data)
            began = time.perf_counter()
            signal.alarm(SECONDS)
            try:
                counts[suffix, check(path, rng)] += 1
                extra = peak_memory() - base
                assert extra <= EXTRA_BYTES, f"{extra >> 20} MiB were taken for a file of {path.stat().st_size} bytes"
            except BaseException:
                kept = Path(tempfile.gettempdir()) / f"fuzz-{args.seed}-{number}{suffix}{'.gz' * packed}"
                kept.write_bytes(path.read_bytes())
                print(f"file {number} of seed {args.seed}, kept as {kept}", file=sys.stderr)
                raise
            finally:
                signal.alarm(0)
            slowest = max(slowest, (time.perf_counter() - began, number))
    for (suffix, outcome), count in sorted(counts.items()):
        print(f"{suffix:13} {outcome:8} {count:8,}")
    print(
        f"{args.files:,} files, the slowest (file {slowest[1]}) {slowest[0]:.2f} s, "
        f"peak memory {base >> 20} MiB at the start + {(peak_memory() - base) >> 20} MiB"
    )


if __name__ == "__main__":
    main()
