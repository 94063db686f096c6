"""Foreign files of weights become files that the server reads: `import`."""

from pathlib import Path
from typing import Annotated

import typer

from unerase._commands.backend import of_the_backend, of_the_operator
from unerase._commands.output import say_lines, tell


def import_weights(
    file: Annotated[Path, typer.Argument(help="A file of weights, or a pipeline's folder with pickled weights.")],
    out: Annotated[Path, typer.Option(file_okay=False, help="The folder to write to.")],
    kind: Annotated[
        str,
        typer.Option(
            "--as", help="What the file holds: model, unet, text-encoder, lora or embedding; else its names decide."
        ),
    ] = "",
    name: Annotated[str, typer.Option(help="The model's name in the catalogue; the file's name unless given.")] = "",
    base: Annotated[str, typer.Option(help="The catalogue's model that the file changes.")] = "",
    catalogue: Annotated[
        list[str] | None, typer.Option(help="A catalogue file that --base is looked up in; may be repeated.")
    ] = None,
    config: Annotated[
        Path | None, typer.Option(help="A folder with the model's configurations, where --base is not given.")
    ] = None,
    key: Annotated[str, typer.Option(help="Which set of weights, of a file that nests several.")] = "",
    token: Annotated[str, typer.Option(help="The word that a learned embedding stands for.")] = "",
    method: Annotated[str, typer.Option(help="The method of erasure, for the entry.")] = "",
    erased: Annotated[list[str] | None, typer.Option(help="A concept that is erased; may be repeated.")] = None,
    memory: Annotated[
        int, typer.Option(help="MiB that reading may take; four times the file and 1 GiB unless given.", min=0)
    ] = 0,
    seconds: Annotated[int, typer.Option(help="Seconds that reading may take.", min=1)] = 900,
    require_isolation: Annotated[
        bool, typer.Option("--require-isolation", help="Refuse where the reading process cannot lose the network.")
    ] = False,
) -> None:
    """Turn weights that the server does not read into safetensors, with an entry for a catalogue.

    The file is read by a process without network, with bounded memory and time, and nothing in it is run.
    """
    backend = of_the_backend("import")
    with of_the_operator():
        result = backend.import_file(
            backend.Request(
                file=file,
                out=out,
                kind=kind,
                name=name,
                base=base,
                catalogues=tuple(catalogue or ()),
                config=config,
                select=key,
                token=token,
                method=method,
                erased=tuple(erased or ()),
                memory=memory * 2**20,
                seconds=seconds,
                require_isolation=require_isolation,
            )
        )
    for note in result.notes:
        tell(note)
    for line in result.files:
        tell(line)
    if result.entry:
        say_lines(result.entry)
