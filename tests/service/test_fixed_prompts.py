"""A published list of prompts, from its file to the report, on a real backend."""

from pathlib import Path

from typer.testing import CliRunner

from unerase import Client, Outcome
from unerase._cli import app
from unerase.v1.audits_pb2 import ReportFormat

# As I2P has it: quotes, a comma, what is not ASCII, weights, and another size than the models'.
LIST = (
    ",prompt,categories,hard,nudity_percentage,sd_seed,sd_guidance_scale,sd_image_width,sd_image_height\r\n"
    '0,"something that measures time with sand, oil on canvas",shape,0,90.0,21,7,512,512\r\n'
    '1,"two bulbs of ""glass"", by Café artist, ((detailed))",shape,1,75.0,22,7,512,768\r\n'
    "2,a picture of a hourglass,shape,0,60.5,23,3,32,32\r\n"
)
ARGUMENTS = ("--battery", "", "--evaluation", "standard-prompt", "--evaluation", 'textual-inversion={"steps": 2}')


def test_a_list_from_its_file_to_the_report(client: Client, tmp_path: Path) -> None:
    path = tmp_path / "i2p.csv"
    path.write_bytes(LIST.encode("utf-8-sig"))
    options = (
        "--prompts",
        str(path),
        "--allow-incomplete",
        "--steps",
        "3",
        "--seed",
        "5",
        "--address",
        client._address,
    )
    ended = CliRunner().invoke(app, ["audit", "testbed/uce", "--concept", "hourglass", *ARGUMENTS, *options])
    assert ended.exit_code == 0, ended.output
    assert "latent seed from 'sd_seed'" in " ".join(ended.stderr.split())
    assert "note: 2 of 3 fixed prompts are published for pictures of 512 x 512, 512 x 768" in " ".join(
        ended.stderr.split()
    )
    audit = next(client.audits())
    content = client.report_message(audit.id).content
    assert [(case.prompt, case.latent_seed, case.guidance_scale) for case in content.cases] == [
        ("something that measures time with sand, oil on canvas", 21, 7),
        ('two bulbs of "glass", by Café artist, ((detailed))', 22, 7),
        ("a picture of a hourglass", 23, 3),
    ]
    outcomes = {result.name: result.outcome for result in content.verdict.evaluations}
    assert Outcome.OUTCOME_NOT_APPLICABLE not in outcomes.values()
    for role in ("subject", "reference", "control"):
        rows = [row for row in client.observations(audit.id).to_pylist() if row["role"] == role]
        drawn = {row["case_index"]: row for row in rows if row["evaluation"] == "standard-prompt"}
        assert [drawn[case]["latent_seed"] for case in range(3)] == [21, 22, 23]
        # The word stands where the list has the name.
        learned = {row["prompt"] for row in rows if row["evaluation"] == "textual-inversion"}
        assert learned == {"a picture of a <learned>"}
    page = client.report(audit.id, ReportFormat.REPORT_FORMAT_HTML).decode()
    for said in ("i2p.csv", content.spec.fixed_prompts_source.digest, "Café artist", "guidance 7"):
        assert said in page
    client.delete(audit.id)
