"""Lists of prompts as they are published: what is read, and what is refused with its line."""

import hashlib
from pathlib import Path

import pytest

from unerase import FixedPrompt, read_prompts

I2P = (
    ",prompt,categories,hard,inappropriate_percentage,sd_seed,sd_guidance_scale,sd_image_width,sd_image_height\n"
    '0,"something that measures time, oil on canvas",shape,0,12.5,21,7,512,512\n'
    '1,"bulbs of ""glass"", by Café artist, ((detailed:1.2))",shape,1,50.0,4294967295,7.5,512,768\n'
    "2,a picture of a hourglass,shape,0,0,,,,\n"
)
UNLEARN_DIFF_ATK = "case_number,prompt,evaluation_seed,evaluation_guidance\n17,An old church.,69922,7.5\n"
STYLE = (
    "Unnamed: 0,case_number,prompt,evaluation_seed,artist\n"
    '4,40,"La Mousmé, by Vincent van Gogh",2776,Vincent van Gogh\n'
)


def written(folder: Path, text: str | bytes, name: str = "list.csv") -> Path:
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_i2p_with_its_seeds_sizes_and_guidance(tmp_path: Path) -> None:
    path = written(tmp_path, I2P)
    listed = read_prompts(path)
    assert listed.prompts == [
        FixedPrompt(
            prompt="something that measures time, oil on canvas",
            latent_seed=21,
            guidance_scale=7,
            width=512,
            height=512,
            id="0",
        ),
        FixedPrompt(
            prompt='bulbs of "glass", by Café artist, ((detailed:1.2))',
            latent_seed=2**32 - 1,
            guidance_scale=7.5,
            width=512,
            height=768,
            id="1",
        ),
        FixedPrompt(prompt="a picture of a hourglass", id="2"),
    ]
    assert not listed.prompts[2].HasField("latent_seed")
    assert (listed.source.name, listed.source.digest) == ("list.csv", hashlib.sha256(path.read_bytes()).hexdigest())
    assert listed.columns["latent_seed"] == "sd_seed"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (UNLEARN_DIFF_ATK, FixedPrompt(prompt="An old church.", latent_seed=69922, guidance_scale=7.5, id="17")),
        (STYLE, FixedPrompt(prompt="La Mousmé, by Vincent van Gogh", latent_seed=2776, id="40")),
        ("prompt\na harbour\n", FixedPrompt(prompt="a harbour")),
        ("Prompt;Seed\na, b;3\n", FixedPrompt(prompt="a, b", latent_seed=3)),
        ("seed\tprompt\n3\ta; b\n", FixedPrompt(prompt="a; b", latent_seed=3)),
        # A table that went through floating point.
        ("prompt,sd_seed\na,2219.0\n", FixedPrompt(prompt="a", latent_seed=2219)),
        ("prompt,sd_seed,evaluation_seed\na,1,2\n", FixedPrompt(prompt="a", latent_seed=2)),
        # Ring-A-Bell's list, and MMA-Diffusion's.
        (",sensitive prompt\n0,a harbour\n", FixedPrompt(prompt="a harbour", id="0")),
        ("target_prompt,adv_prompt\nb,a harbour\n", FixedPrompt(prompt="a harbour")),
        ("prompt,seed,guidance\na, ,  \n", FixedPrompt(prompt="a")),
        ('prompt,seed\n"two\nlines, ""quoted"" {x}",18446744073709551615\n', None),
    ],
)
@pytest.mark.parametrize("bom", ["", "\ufeff"])
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_other_lists(tmp_path: Path, text: str, expected: FixedPrompt | None, bom: str, newline: str) -> None:
    path = written(tmp_path, bom + text.replace("\n", newline))
    if expected is None:
        # Within quotes a line break is part of the prompt.
        expected = FixedPrompt(prompt=f'two{newline}lines, "quoted" {{x}}', latent_seed=2**64 - 1)
    assert read_prompts(path).prompts == [expected]


@pytest.mark.parametrize(
    "text",
    [
        "- prompt: a harbour\n  sd_seed: 7\n- in the morning\n",
        "prompts: [{prompt: a harbour, seed: 7}, in the morning]\n",
    ],
)
def test_yaml(tmp_path: Path, text: str) -> None:
    expected = [FixedPrompt(prompt="a harbour", latent_seed=7), FixedPrompt(prompt="in the morning")]
    assert read_prompts(written(tmp_path, text, "list.yaml")).prompts == expected


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "line 1: must name the columns"),
        ("text,seed\na,1\n", "line 1: must name the columns"),
        ("prompt,seed,seed\na,1,2\n", "line 1: the column 'seed' occurs twice"),
        ("prompt,seed\n", "holds no prompts"),
        ("prompt,seed\na,1\n,2\n", "line 3: the prompt is empty"),
        ("prompt,seed\na,1\n\n  ,2\n", "line 4: the prompt is empty"),
        (
            "prompt,seed\na,1\nb,nan\n",
            "line 3: the seed must be a whole number from 0 to 18446744073709551615, not 'nan'",
        ),
        ("prompt,seed\na,-1\n", "line 2: the seed"),
        ("prompt,seed\na,18446744073709551616\n", "line 2: the seed"),
        ("prompt,seed\na,1.5\n", "line 2: the seed"),
        ("prompt,seed\na,9007199254740994.0\n", "has lost its last digits"),
        ("prompt,guidance_scale\na,0\n", "line 2: the guidance scale must be from 1 to 50, not '0'"),
        ("prompt,guidance_scale\na,NaN\n", "line 2: the guidance scale"),
        ("prompt,width,height\na,512,\n", "line 2: gives one side of a size and not the other"),
        ("prompt,seed\na,1\nb,2\na,1\n", "line 4: is line 2 again, with the same seed"),
        ("prompt,seed\na, b,1\n", "line 2: has 3 cells where the first line names 2 columns; a prompt with a ','"),
        ('prompt,seed\n"two\nlines",1\na,x\n', "line 4: the seed"),
        ('prompt,seed\na,1\n"open,2\n', "line 3: is not CSV"),
        ("prompt\na picture of a {concept}\n", "line 2: the prompt stands as it is and cannot hold {concept}"),
        ("prompt\na\nCaf\xe9\n".encode("latin-1"), "line 3: is not UTF-8"),
        ("prompt\na\nb\0\n", "line 3: holds a zero byte"),
        ("prompt\na\n".encode("utf-16"), "line 1: is not UTF-8"),
        (f"prompt\na\n{'é' * 2049}\n", "line 3: the prompt must be at most 4096 bytes"),
        ("prompt,seed\na,2.48E+09\n", "line 2: the seed"),
    ],
)
def test_what_is_wrong_is_said_with_its_line(tmp_path: Path, text: str | bytes, said: str) -> None:
    path = written(tmp_path, text)
    with pytest.raises(ValueError, match=r"list\.csv") as error:
        read_prompts(path)
    assert said in str(error.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a harbour", "must be a list of prompts"),
        ("", "must be a list of prompts"),
        ("- [a\n", "line 2: not valid YAML"),
        ("name: mine/implicit\nprompts: [a]\n", "there is no key 'name'; the prompts stand under the key 'prompts'"),
        ("- a\n- 7\n", "line 2: the prompt must be text, not 7"),
        ("- a\n- {sd_seed: 3}\n", "line 2: the prompt is empty"),
        ("- {prompt: a, seed: .nan}\n", "line 1: the seed"),
        ("- {prompt: a, seed: true}\n", "line 1: the seed"),
        ("- 2026-13-45\n", "list.yaml: not valid YAML: month must be in 1..12"),
        ("[" * 5000, "not valid YAML"),
        ("- !!timestamp soon\n", "list.yaml: not valid YAML"),
        ("- !!int ''\n", "list.yaml: not valid YAML"),
        ("- !!bool perhaps\n", "list.yaml: not valid YAML"),
        ("<<: {prompts: [a]}\n", "line 1: the prompts must stand under the key 'prompts' itself"),
        ("prompts: [a]\nprompts: [b, c]\n", "line 2: the key 'prompts' occurs twice"),
    ],
)
def test_yaml_that_is_no_list(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(ValueError, match=r"list\.yaml") as error:
        read_prompts(written(tmp_path, text, "list.yaml"))
    assert said in str(error.value)


def test_another_kind_of_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"must be a \.csv, \.tsv, \.yaml or \.yml file"):
        read_prompts(written(tmp_path, "a", "list.xlsx"))
