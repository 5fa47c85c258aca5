"""What an inference form may be made with: one small class each."""

import io
import logging
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory, TemporaryFile
from types import MappingProxyType
from typing import Protocol, TypeAlias

import torch
from torch import Tensor

from esper.blueprints.kernel import pack_kernel, unpack_kernel
from esper.blueprints.module import KernelModule
from esper.blueprints.weights import check_state
from esper.errors import CompilationError, ConfigError
from esper.services.tezzeret.gates.trial import Trial
from esper.services.tezzeret.inference.certificate import trace
from esper.services.tezzeret.inference.fusion import Fused
from esper.services.tezzeret.scratch import no_compiler
from esper.signing.sealed import Verified, bytes_to_load, checked

Program: TypeAlias = Callable[[Tensor], Tensor]
"""Takes x and returns F(x), without gradients."""

_INDUCTOR = MappingProxyType(
    {
        # By default inductor writes vectors of up to eight numbers into the code, where no weight can be put in later.
        "always_keep_tensor_constants": True,
        # Each takes 156 MB and longer than one form, and stays behind in the system's folder for temporary files.
        "aot_inductor.precompile_headers": False,
    }
)


class Backend(Protocol):
    """Makes an inference form, and runs it with any weights of that design; it parses no byte that is not verified."""

    name: str
    """Its name."""
    carries_code: bool
    """Whether loading its bytes may run code."""

    def missing(self, trial: Trial) -> str:
        """Return why it cannot make a form of this kernel here, or nothing."""
        ...

    def make(self, fused: Fused, trial: Trial) -> bytes:
        """Return the bytes of a form of a fused design; no tensor in it is uniform, as a compiler may fold those."""
        ...

    def load(self, form: Verified, state: Mapping[str, Tensor]) -> Program:
        """Return a program that computes with other weights of the same fused design.

        Raises:
            KernelRejected: If the form is not verified, or not of this kind.
        """
        ...


class Rebuild:
    """The fused design as a kernel: read and rebuilt, as in training. It carries no code."""

    name = "eager"
    carries_code = False

    def missing(self, trial: Trial) -> str:
        """Nothing is ever missing."""
        return ""

    def make(self, fused: Fused, trial: Trial) -> bytes:
        """Pack the fused design."""
        return pack_kernel(fused.ir, fused.state, seed=trial.kernel.seed)

    def load(self, form: Verified, state: Mapping[str, Tensor]) -> Program:
        """Build the fused design with the given weights."""
        data = bytes_to_load(form, self.name)
        module = KernelModule(unpack_kernel(data).ir, {name: tensor.clone() for name, tensor in state.items()}).eval()
        return _without_gradients(module)


class Onnx:
    """ONNX, run by ONNX Runtime on the CPU."""

    name = "onnx"
    carries_code = True

    def missing(self, trial: Trial) -> str:
        """Return what is not installed, or why the kernel's type does not fit."""
        absent = [name for name in ("onnx", "onnxscript", "onnxruntime") if find_spec(name) is None]
        if absent:
            return f"{', '.join(absent)} not installed; pip install 'esper-morphogenesis[onnx]'"
        if trial.kernel.dtype not in ("float32", "float64"):
            return f"ONNX Runtime lacks operations in {trial.kernel.dtype} on the CPU"
        return ""

    def make(self, fused: Fused, trial: Trial) -> bytes:
        """Convert the traced design; weights keep their names."""
        traced = trace(_module(fused), trial)
        with _quiet():
            converted = torch.onnx.export(traced, dynamo=True, optimize=False, verbose=False)
        if converted is None:
            raise CompilationError(f"blueprint {trial.ir.name!r} was not converted to ONNX")
        return bytes(converted.model_proto.SerializeToString())

    def load(self, form: Verified, state: Mapping[str, Tensor]) -> Program:
        """Put the weights into the model, then start a session on one thread.

        Overriding them in the session's options instead is a trap: constants are folded with the old weights first.
        """
        data = bytes_to_load(form, self.name)
        import onnx
        import onnxruntime

        model = onnx.load_from_string(data)
        held = {initializer.name: initializer for initializer in model.graph.initializer}
        for name, tensor in state.items():
            held[name].CopyFrom(onnx.numpy_helper.from_array(tensor.detach().contiguous().numpy(), name))
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        name = session.get_inputs()[0].name
        return lambda x: torch.from_numpy(session.run(None, {name: x.numpy()})[0])


class AotInductor:
    """AOTInductor: compiled machine code in a package, for CUDA, and for the CPU where there is a C++ compiler."""

    name = "aotinductor"
    carries_code = True

    def missing(self, trial: Trial) -> str:
        """Return why nothing can be compiled here, or nothing."""
        return no_compiler() or _no_files()

    def make(self, fused: Fused, trial: Trial) -> bytes:
        """Compile the traced design into a package."""
        from torch._inductor import aoti_compile_and_package
        from torch._inductor.exc import InductorError

        traced = trace(_module(fused), trial)
        with TemporaryDirectory() as folder, _quiet():
            package = Path(folder) / "form.pt2"
            try:
                aoti_compile_and_package(traced, package_path=str(package), inductor_configs=dict(_INDUCTOR))
            except InductorError as wrong:
                raise CompilationError("machine code was not made", why=str(wrong)[:500], code="ESP-7142") from wrong
            return package.read_bytes()

    def load(self, form: Verified, state: Mapping[str, Tensor]) -> Program:
        """Load the package, and give it the weights.

        Raises:
            CompilationError: If this process has no folder to unpack it in.
        """
        bytes_to_load(form, self.name)
        if why := _no_files():
            raise CompilationError("machine code was not loaded", why=why, code="ESP-7141")
        from torch._inductor import aoti_load_package

        with form.placed("form.pt2") as package, _quiet():
            program = aoti_load_package(str(package))
        program.load_constants({name: tensor.clone() for name, tensor in state.items()}, check_full_update=True)
        return _without_gradients(program)


class TorchScript:
    """TorchScript, which the specification names; deprecated by torch, and its bytes differ from build to build."""

    name = "torchscript"
    carries_code = True

    def missing(self, trial: Trial) -> str:
        """Return why this Python cannot have it, or nothing."""
        return "torch does not support TorchScript on Python 3.14 and later" if sys.version_info >= (3, 14) else ""

    def make(self, fused: Fused, trial: Trial) -> bytes:
        """Trace the fused design."""
        with _quiet():
            script = torch.jit.trace(_module(fused), (trial.input(trial.probes.odd),), check_trace=False)  # type: ignore[no-untyped-call]
            buffer = io.BytesIO()
            torch.jit.save(script, buffer)
        return buffer.getvalue()

    def load(self, form: Verified, state: Mapping[str, Tensor]) -> Program:
        """Load it, and give it the weights."""
        data = bytes_to_load(form, self.name)
        with _quiet():
            script = torch.jit.load(io.BytesIO(data))  # type: ignore[no-untyped-call]
        script.load_state_dict(state)
        return _without_gradients(script)


BACKENDS: Mapping[str, Backend] = {
    backend.name: backend for backend in (Rebuild(), Onnx(), AotInductor(), TorchScript())
}
"""Every backend by name."""


def backend_named(name: str) -> Backend:
    """Return a backend.

    Raises:
        ConfigError: If there is none of that name.
    """
    if name not in BACKENDS:
        raise ConfigError(f"there is no backend {name!r}", todo=f"choose one of {', '.join(BACKENDS)}")
    return BACKENDS[name]


def load(form: Verified, state: Mapping[str, Tensor]) -> Program:
    """Return what a verified form computes with weights of its fused design.

    Args:
        form: Bytes whose seal held; they are loaded as what they were signed as.
        state: The weights.

    Raises:
        KernelRejected: If these are raw bytes.
        ConfigError: If there is no backend for them.
    """
    return backend_named(checked(form).manifest.kind).load(form, state)


def _module(fused: Fused) -> KernelModule:
    check_state(fused.ir, fused.state)
    return KernelModule(fused.ir, {name: tensor.clone() for name, tensor in fused.state.items()}).eval()


def _without_gradients(module: Callable[[Tensor], Tensor]) -> Program:
    def run(x: Tensor) -> Tensor:
        with torch.inference_mode():
            return module(x)

    return run


def _no_files() -> str:
    """Return why this process cannot write the files that machine code comes in, or nothing."""
    try:
        with TemporaryFile(buffering=0) as file:
            file.write(b"x")
    except OSError as refused:
        return (
            f"this process may write no file ({refused.strerror}); a child of the forge needs scratch_mb, and Landlock"
        )
    return ""


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep what torch says of itself (deprecations, libraries that are not installed) out of the forge's streams."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
