"""A prompt pack in a YAML file: prompts that ask for a concept in other words, by kind.

concept: hourglass
kinds:
  paraphrase: ["a photo of a device with two glass bulbs and running sand"]
  synonym: [a picture of a sandglass]
  language-de: [ein Bild einer Sanduhr]
  implicit: [something that measures time with sand]
  typo: [a picture of an hourglas]

The names of the kinds are free: lower-case words and digits, joined by "-".
"""

import hashlib
import re
from pathlib import Path
from typing import Any

from unerase._yaml_file import load_yaml
from unerase.v1.types_pb2 import PromptKind, PromptPack, PromptSource

MAX_PACK_BYTES = 256 * 1024
MOSTPACK_KINDS, MOST_PROMPTS = 32, 256
MAX_PROMPT_BYTES = 4096
"""A prompt, with the concept's name in its place, in UTF-8; text encoders cut off what is too long for them."""
PACK_KIND = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")


def read_pack(path: str | Path) -> PromptPack:
    """Read a prompt pack.

    Raises:
        ValueError: the file is not a prompt pack; the message names the file, the kind and what is wrong there.
        OSError: the file cannot be read.
    """
    return read_described_pack(path)[0]


def read_described_pack(path: str | Path) -> tuple[PromptPack, str]:
    """Read a prompt pack, and the name of the concept that its file says it is of; empty if it says none.

    Raises as `read_pack`.
    """
    path = Path(path)
    content = path.read_bytes()
    if len(content) > MAX_PACK_BYTES:
        raise ValueError(f"{path}: must be at most {MAX_PACK_BYTES} bytes, not {len(content)}")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: line {content.count(10, 0, error.start) + 1}: is not UTF-8") from None
    described, _ = load_yaml(path, text)
    if not isinstance(described, dict) or not isinstance(described.get("kinds"), dict) or not described["kinds"]:
        raise ValueError(f"{path}: must be a mapping whose key 'kinds' maps each kind to a list of prompts")
    if unknown := [key for key in described if key not in ("concept", "kinds")]:
        raise ValueError(f"{path}: there is no key {unknown[0]!r}; the keys are concept and kinds")
    kinds = described["kinds"]
    if len(kinds) > MOSTPACK_KINDS:
        raise ValueError(f"{path}: kinds: must be at most {MOSTPACK_KINDS}, not {len(kinds)}")
    concept = described.get("concept", "")
    if not isinstance(concept, str):
        raise ValueError(f"{path}: concept: must be a concept's name")
    source = PromptSource(name=path.name, digest=hashlib.sha256(content).hexdigest())
    pack = PromptPack(kinds=[_kind(path, name, prompts) for name, prompts in kinds.items()], source=source)
    return pack, concept


def _kind(path: Path, name: Any, prompts: Any) -> PromptKind:
    if not isinstance(name, str) or not PACK_KIND.fullmatch(name):
        raise ValueError(f'{path}: kinds: {name!r} must be lower-case words and digits, joined by "-"')
    where = f"{path}: kinds.{name}"
    if not isinstance(prompts, list) or not 1 <= len(prompts) <= MOST_PROMPTS:
        raise ValueError(f"{where}: must be a list of 1 to {MOST_PROMPTS} prompts")
    for index, prompt in enumerate(prompts):
        if not isinstance(prompt, str) or not prompt.strip():
            raise ValueError(f"{where}[{index}]: must be a prompt, not {prompt!r}")
        if len(prompt.encode()) > MAX_PROMPT_BYTES or "{concept}" in prompt:
            raise ValueError(f"{where}[{index}]: must be at most {MAX_PROMPT_BYTES} bytes, and hold no {{concept}}")
    if len(set(prompts)) < len(prompts):
        raise ValueError(f"{where}: holds a prompt twice")
    return PromptKind(name=name, prompts=prompts)
