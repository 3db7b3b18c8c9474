"""ONNX Runtime and its files, where a configuration has the networks run by it."""

from collections.abc import Iterator

from app.checks.finding import Finding, Level, Subject
from workers.engine.runtimes.files import RuntimeProblem, folder_for
from workers.engine.runtimes.files import check as check_files


def check(subject: Subject) -> Iterator[Finding]:
    """Finds nothing where torch runs the networks."""
    engine = subject.settings.engine
    if engine.kind == "echo" or engine.runtime != "onnxruntime":
        return
    dtype = engine.dtype_on(cuda=subject.on_gpu)
    try:
        check_files(engine, dtype, cuda=subject.on_gpu)
    except RuntimeProblem as error:
        text, _, remedy = str(error).replace("CONFIG", str(subject.config)).partition("; make it")
        yield Finding("onnx", Level.MISSING, text, f"make it{remedy}" if remedy else "")
    else:
        yield Finding("onnx", Level.OK, f"the files of this model are in {folder_for(engine, dtype)}")
