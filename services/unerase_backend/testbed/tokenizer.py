"""The tokenizer of the small world: byte-level byte-pair encoding in the format of CLIP's.

Byte-pair encoding (Sennrich, Haddow, Birch 2016) over bytes (Radford et al. 2019): every byte has a printable
stand-in, the last symbol of a word carries the suffix `</w>`, and the pair of neighbours that is most frequent in
the word list is merged, repeatedly. Here merging goes on until each word of the world is a single token: a concept's
name is then one row of the embedding, as some erasers and learned embeddings need. All 256 bytes, inside and at the end
of a word, are tokens too, so any text can be encoded.

Vocabulary: 256 bytes, 256 final bytes, one entry for each merge, `<|startoftext|>`, `<|endoftext|>` (also the
padding). Length 24.
"""

from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

from transformers import CLIPTokenizer

from unerase_backend.testbed import language

LENGTH = 24
START, END = "<|startoftext|>", "<|endoftext|>"
WORD_END = "</w>"


def byte_symbols() -> tuple[str, ...]:
    """Return the printable stand-in of each byte: itself if it is printable, otherwise a character from 256 upwards."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    symbol = {byte: chr(byte) for byte in printable} | {byte: chr(256 + index) for index, byte in enumerate(others)}
    return tuple(symbol[byte] for byte in range(256))


def learn_merges(words: Sequence[str]) -> list[tuple[str, str]]:
    """Return the merges, in order, that make every word one symbol; of equally frequent pairs the alphabet decides."""
    symbols = byte_symbols()
    spelled: list[tuple[str, ...]] = []
    for word in dict.fromkeys(words):
        letters = [symbols[byte] for byte in word.encode()]
        spelled.append((*letters[:-1], letters[-1] + WORD_END))
    merges: list[tuple[str, str]] = []
    while pairs := Counter(pair for word in spelled for pair in pairwise(word)):
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append(best)
        spelled = [_merge(word, best) for word in spelled]
    return merges


def _merge(word: tuple[str, ...], pair: tuple[str, str]) -> tuple[str, ...]:
    merged: list[str] = []
    for symbol in word:
        if merged and (merged[-1], symbol) == pair:
            merged[-1] += symbol
        else:
            merged.append(symbol)
    return tuple(merged)


def build() -> CLIPTokenizer:
    """Return the tokenizer of the small world."""
    merges = learn_merges(language.corpus_words())
    symbols = byte_symbols()
    entries = [
        *symbols,
        *(symbol + WORD_END for symbol in symbols),
        *(left + right for left, right in merges),
        START,
        END,
    ]
    vocabulary = {entry: index for index, entry in enumerate(dict.fromkeys(entries))}
    return CLIPTokenizer(
        vocab=vocabulary,
        merges=merges,
        bos_token=START,
        eos_token=END,
        unk_token=END,
        pad_token=END,
        model_max_length=LENGTH,
    )


def save(folder: Path) -> None:
    """Write the tokenizer's files to `folder`."""
    build().save_pretrained(folder)


def load(folder: Path) -> CLIPTokenizer:
    """Return the tokenizer in `folder`."""
    tokenizer: CLIPTokenizer = CLIPTokenizer.from_pretrained(folder, local_files_only=True)
    return tokenizer
