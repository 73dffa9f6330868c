"""``inspector export``: a native model as an ONNX file."""

from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from ..files import check_writable
from ..render.tables import command
from ..render.text import memory, visible
from .grouping import grouped
from .options import ModelArgument, ModelOptions, Output, command_arguments
from .waiting import busy


@grouped(without=["json_path", "save_svg", "save_png"])
def export(
    model: ModelArgument,
    onnx: Annotated[Path, typer.Option("--onnx", metavar="FILE", help="Where to write it, as FILE.onnx.")],
    kv_cache: Annotated[bool, typer.Option("--kv-cache", help="With what a KV-cache keeps as further inputs and outputs.")] = False,
    *,
    how: ModelOptions,
    out: Output,
) -> None:
    """Write a native model to an ONNX file, which run and verify open again, and onnxruntime anywhere."""
    if onnx.suffix != ".onnx":
        raise ValueError(f"--onnx {str(onnx)!r}: give a name that ends in .onnx, by which it is known again")
    check_writable(onnx)
    t = out.t
    m = how.load(model)
    out.remarks(*m.notices)
    with busy(t("exporting …", "экспорт …")):
        from ..loading.onnx import beside, export

        export(m, onnx, kv_cache)
        difference = beside(m, str(onnx))
    size = memory(onnx.stat().st_size, t)
    inputs = (
        t("ids and what the cache keeps go in", "на входе номера и то, что хранит кэш") if kv_cache else t("ids go in", "на входе номера")
    )
    said = t(
        f"{visible(str(onnx))}: {size}; {inputs}, batch and length are free; onnxruntime's logits differ by up to {difference:.1e}",
        f"{visible(str(onnx))}: {size}; {inputs}, размер батча и длина любые; логиты onnxruntime отличаются до {difference:.1e}",
    )
    out.console.print(Text(said))
    name = str(onnx if len(onnx.parts) > 1 else f"./{onnx}")
    out.console.print(command(command_arguments("run", name, t("PROMPT", "ЗАПРОС"), options=[])), soft_wrap=True)
