"""Execution: puts graphs, compiled networks, attention kernels and streams together, and improves them in service.

The buffers and graphs for images of one size are a workspace. Those of the configured sizes stay; those of other sizes
are made when the first such image comes, and dropped when they take too much memory.
"""

import logging
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property, lru_cache
from threading import Lock
from typing import TypeVar, get_args

import torch
from torch import Tensor

from workers.engine.attention import Attention, Kernel, kernels
from workers.engine.batch import Batch, BatchShape
from workers.engine.choices import Choices
from workers.engine.compiling import Compiler, DeviceLock, Target, describe, hold_while_timing, one_worker_at_a_time
from workers.engine.conditioning import HintEncoder
from workers.engine.config import AttentionKernel, EngineConfig, rows_of
from workers.engine.contract import EngineStatus
from workers.engine.graphs import Fallbacks, GraphContext, Graphs, Pool, Recorder, first_line, recorder_for
from workers.engine.kernel_probe import cache_file
from workers.engine.plan import DeviceSchedule, Plan, Size
from workers.engine.preview import Colours, fit
from workers.engine.runtime import AnyModel, Faster, ModelFunctions
from workers.engine.streams import Decoder, SideStream, upload
from workers.engine.trials import COMPILING, CONVOLUTIONS, GRAPHS, GROUP_NORM, Trials
from workers.engine.trials import attention as trial_of

log = logging.getLogger(__name__)

Inputs = TypeVar("Inputs")
T = TypeVar("T")

_GIB = 2**30
_KEPT_SCHEDULES = 16  # kept on the device: 3.0 MB each with SD 1.5 in float16 and 50 steps
_MODE_ON_CUDA = "max-autotune-no-cudagraphs"  # we record the graphs


# ----------------------------------------------------------------------------------------------------------- workspaces


@dataclass(frozen=True, eq=False, slots=True)
class Workspace:
    """Everything that makes images of one size. `kept`: never dropped, as the configuration names its size."""

    batch: Batch
    hint: HintEncoder
    decoder: Decoder
    kept: bool

    @property
    def size(self) -> int:
        """Bytes of device memory, graphs included."""
        return self.batch.size + self.hint.size + self.decoder.size + self.graph_bytes

    def plain_parts(self) -> list[int | None]:
        """The buckets that images ran in and whose networks could still be upgraded, and None for such a VAE."""
        plain: list[int | None] = [*self.batch.plain_buckets()]
        return plain if self.decoder.upgraded or not self.batch.used else [*plain, None]

    @property
    def graph_bytes(self) -> int:
        return self.batch.graphs.size + self.hint.graphs.size + self.decoder.graphs.size


class Workspaces:
    """The workspaces by size.

    Those of sizes that are not configured are made at first use, and kept while they take no more than `bound` bytes
    together; the least recently used idle ones are dropped first. `synchronize` waits for the device.
    """

    def __init__(self, make: Callable[[Size, bool], Workspace], bound: int, synchronize: Callable[[], None]) -> None:
        self._make = make
        self._bound = bound
        self._synchronize = synchronize
        self._by_size: OrderedDict[Size, Workspace] = OrderedDict()

    def __len__(self) -> int:
        return len(self._by_size)

    def __iter__(self) -> Iterator[Workspace]:
        return iter(list(self._by_size.values()))

    def of(self, size: Size, *, kept: bool = False) -> Workspace:
        """The workspace of a size, made on first use."""
        if size not in self._by_size:
            self._by_size[size] = self._make(size, kept)
        self._by_size.move_to_end(size)
        self._keep_to_bound(size)
        return self._by_size[size]

    def get(self, size: Size) -> Workspace | None:
        """The workspace of a size, if there is one."""
        return self._by_size.get(size)

    def latest(self) -> list[tuple[Size, Workspace]]:
        """The sizes and their workspaces, the most recently used first."""
        return list(reversed(self._by_size.items()))

    def busy(self) -> Iterator[Batch]:
        """The batches that have images in them."""
        return (workspace.batch for workspace in self if len(workspace.batch))

    def make_room(self) -> bool:
        """Drop all idle workspaces that are not kept; False when there are none."""
        idle = self._idle()
        self._drop(idle)
        return bool(idle)

    def _keep_to_bound(self, wanted: Size) -> None:
        """Drop what exceeds the bound. Recording makes workspaces grow, so this runs when one is asked for."""
        idle = [size for size in self._idle() if size != wanted]
        surplus = sum(workspace.size for workspace in self if not workspace.kept) - self._bound
        gone = []
        while idle and surplus > 0:
            gone.append(idle.pop(0))
            surplus -= self._by_size[gone[-1]].size
        self._drop(gone)

    def _idle(self) -> list[Size]:
        return [size for size, each in self._by_size.items() if not each.kept and not len(each.batch)]

    def _drop(self, sizes: list[Size]) -> None:
        if sizes:
            self._synchronize()  # one may still be decoding
        for size in sizes:
            log.info("Dropping the buffers and graphs for latents of %dx%d", *size)
            del self._by_size[size]


# -------------------------------------------------------------------------------------------------------------- manager


class ExecutionManager:
    """Makes the workspaces, and speeds them up while they are used."""

    def __init__(
        self, config: EngineConfig, model: AnyModel, recorder: Recorder | None = None, trials: Trials | None = None
    ) -> None:
        self._config = config
        self._model = model
        self._threads = torch.get_num_threads()
        self.device_lock = DeviceLock()
        """Held while anything but the compiler's timings gives the device work."""
        self._fallbacks = Fallbacks()
        self._trials = trials or Trials()
        self._trials.synchronize = self._synchronize
        for name in sorted(self._trials.without):
            detail = f"processes of this device ended while they tried or used {name}; restart the service to try again"
            self._fallbacks.note(f"{name}: off after a crash", detail)
        self._recorder = recorder
        self._times_convolutions = config.speed.time_convolutions and CONVOLUTIONS not in self._trials.without
        self._attention = self._made_attention()
        self._functions = model.functions(self._attention, _MODE_ON_CUDA if self._on_cuda else None)
        self._by_torch, self._faster = self._functions.by_torch, self._wanted(self._functions.faster)
        if self._on_cuda and config.runtime_on(cuda=True) == "torch" and config.speed.kernels != self._functions.fused:
            self._fallbacks.note(f"{GROUP_NORM}: not usable", "torch has others; the reason is above")
        self._compiled: dict[Target, ModelFunctions] = {}  # until they are in use
        self._held = False  # whether the compiler's timings take turns with the steps
        if recorder is None and config.speed.graphs and self._by_torch:
            recorder = recorder_for(model.device)
        if GRAPHS in self._trials.without:
            recorder = None
        self._recorder = recorder
        lock = Lock()
        self._context = GraphContext(recorder, self._fallbacks, self._make_room, lock, self._trials)
        # One pool per stream: steps and text run on the main one, the VAE on its own.
        self._main_pool, self._vae_pool = Pool(), Pool(concurrent=True)
        self._text = Graphs(self._context, self._main_pool)
        self._step_side, self._vae_side = self._side_stream(), self._side_stream()
        self._predict = self._tried(self._functions.predict(self._step_side), lambda inputs: inputs.latents.shape)
        self._decode = self._tried(self._functions.decode, lambda latents: latents.shape)
        # One stream for all targets: torch keeps a cuBLAS workspace per stream, for good.
        self._compile_stream = torch.cuda.Stream(model.device) if self._on_cuda else None
        self._compile_side = self._side_stream()
        self._compiler = Compiler(self._compile, lock, self._fallbacks, one_worker_at_a_time)
        self._later: deque[Target] = deque()  # to be compiled when nothing else is to be done
        rows = rows_of(config.guidance_scale)
        self.shape = BatchShape(config.slots, rows, buckets(config.slots, exact=recorder is None))
        self._schedules = lru_cache(_KEPT_SCHEDULES)(self._make_schedule)
        self.spaces = Workspaces(self._workspace, int(config.speed.other_sizes_gib * _GIB), self._synchronize)

    def set_up(self) -> None:
        """Record the graphs of the configured sizes: the largest first, as later ones fit into its memory."""
        for size in sorted(self._sizes(), key=lambda size: size[0] * size[1], reverse=True):
            space = self.spaces.of(size, kept=True)
            self._time_convolutions(space)
            for bucket in reversed(self.shape.buckets):
                if self._recorder is None and self._attention.chooses:  # now, as compiled networks keep the choice
                    with suppress(torch.OutOfMemoryError):  # then there will be smaller batches
                        space.batch.try_out(bucket, self._predict)
                space.batch.prepare(bucket)
            space.hint.prepare()
            space.decoder.prepare()

    def _time_convolutions(self, space: Workspace) -> None:
        """Have cuDNN time its algorithms on a workspace's shapes, if that is wanted; if it fails, never again."""
        if not self._times_convolutions:
            torch.backends.cudnn.benchmark = False
            return
        torch.backends.cudnn.benchmark = True
        try:
            with self._trials.of(CONVOLUTIONS):
                for bucket in reversed(self.shape.buckets):
                    space.batch.try_out(bucket, self._predict)
                space.decoder.try_out(self._decode)
        except Exception as error:  # noqa: BLE001 - whatever it is, cuDNN can choose without
            torch.backends.cudnn.benchmark = self._times_convolutions = False
            self._fallbacks.note("convolutions: not timed", f"{type(error).__name__}: {first_line(error)}")

    def space(self, size: Size) -> Workspace:
        """The workspace of a size, or else a temporary one."""
        return self.spaces.get(size) or self._workspace(size, kept=False)

    @property
    def light(self) -> bool:
        """Whether another size costs little: torch on a CPU needs no graphs and chooses kernels quickly."""
        return self._by_torch and self._recorder is None and not self._on_cuda

    def start_compiling(self) -> None:
        """Compile the networks for the configured sizes in the background, for single images first.

        What also compiles what is used takes the cores that images need: there the rest waits for that, or until
        nothing runs.
        """
        if self._faster is not None:
            first, *others = self.shape.buckets
            for part in (first, None, *others):
                at_once = part not in others or not self._faster.everywhere
                for size in self._sizes():
                    (self._compiler.ask if at_once else self._later.append)((size, part))

    def upgrade(self) -> Iterator[Target]:
        """Switch to what has been compiled, and yield it. To be called between steps.

        Each compiled part is proven first, in this thread, where it will run. One that fails is not used.
        """
        for size, bucket in self._compiler.ready():
            try:
                taken = self._take_over((size, bucket))
            except Exception as error:  # noqa: BLE001 - whatever it is, images can be made without
                detail = f"{describe((size, bucket))}: {type(error).__name__}: {first_line(error)}"
                self._fallbacks.note("compile: not taken over", detail)
                continue
            if taken:
                yield size, bucket
        if self._faster is not None and self._faster.everywhere:
            for size, space in self.spaces.latest():
                for part in space.plain_parts():
                    self._compiler.ask((size, part))
        if self._later and self._compiler.idle() and not any(self.spaces.busy()):
            self._compiler.ask(self._later.popleft())

    def _take_over(self, target: Target) -> bool:
        """Switch to a compiled target. False where its workspace is gone, or where that is slower."""
        size, bucket = target
        compiled, space = self._compiled.pop(target, None), self.spaces.get(size)
        if compiled is None or space is None or self._faster is None:
            return False
        serving = self._faster.serving
        with self._trials.of(COMPILING), self._faster.trying():
            if bucket is None:
                seconds = space.decoder.upgrade(compiled.decode, serving)
            else:
                times = self.schedule(self._model.plans.usual).times
                seconds = space.batch.upgrade(bucket, compiled.predict(self._step_side), times, serving)
        outcome = "have taken over" if seconds.worth_it else "are slower and not used"
        figures = 1000 * seconds.faster, 1000 * seconds.plain
        log.info("%s: compiled networks %s (%.1f ms; uncompiled %.1f ms)", describe(target), outcome, *figures)
        return seconds.worth_it

    def with_room(self, work: Callable[[], T]) -> T:
        """Return the result of `work`. If memory runs out, free some and try once more.

        Raises torch.OutOfMemoryError when that does not help.
        """
        try:
            return work()
        except torch.OutOfMemoryError:
            if not self._make_room():
                raise
        return work()

    def all_compiled(self) -> bool:
        """Return whether everything that should be compiled is in use, slower or given up."""
        return not self._later and self._compiler.idle()

    def keys_values(self, tokens: tuple[int, ...]) -> Tensor:
        """Keys and values of a prompt [77, total]. Read only."""
        return self._model.text.keys_values(tokens, self._text)

    def schedule(self, plan: Plan) -> DeviceSchedule:
        """A plan on the device. Read only."""
        return self._schedules(plan)

    @cached_property
    def colours(self) -> Colours | None:
        """The map from latents to colours, fitted to this model's VAE; None where that failed."""
        try:
            return fit(self._decode, self._model.latent_channels, self._model.device)
        except Exception as error:  # noqa: BLE001 - images are made without previews
            self._fallbacks.note("previews: off", f"{type(error).__name__}: {first_line(error)}")
            return None

    def status(self) -> EngineStatus:
        spaces = list(self.spaces)
        kinds = {
            "steps": sum(len(space.batch.graphs) for space in spaces),
            "steps compiled": sum(space.batch.upgraded for space in spaces),
            "VAE compiled": sum(space.decoder.upgraded for space in spaces),
            "steps kept uncompiled": sum(space.batch.kept for space in spaces),
            "VAE kept uncompiled": sum(space.decoder.kept for space in spaces),
            "VAE": sum(len(space.decoder.graphs) for space in spaces),
            "hint": sum(len(space.hint.graphs) for space in spaces),
            "text": len(self._text),
        }
        return EngineStatus(
            attention=self._attention.choices(),
            graphs=tuple(kinds.items()),
            graph_bytes=self._text.size + sum(space.graph_bytes for space in spaces),
            fallbacks=self._fallbacks.counts(),
        )

    def _sizes(self) -> list[Size]:
        side = self._config.size.short_side
        scale = self._model.latent_scale
        return [(height // scale, width // scale) for width, height in self._config.speed.sizes or [(side, side)]]

    def _make_schedule(self, plan: Plan) -> DeviceSchedule:
        device = self._model.device
        estimates = None if plan.estimates is None else upload(plan.estimates, device)
        times = self._model.times(upload(plan.timesteps, device))
        return DeviceSchedule(upload(plan.weights, device), estimates, times)

    def _workspace(self, size: Size, kept: bool) -> Workspace:
        # A workspace that may be dropped has pools of its own, or its memory would not come back.
        main, vae = (self._main_pool, self._vae_pool) if kept else (Pool(), Pool(concurrent=True))
        self._compiler.forget(size)
        batch = Batch(self._model, self.shape, size, self._predict, Graphs(self._context, main))
        hint = HintEncoder(self._model, size, Graphs(self._context, main))
        decoder = Decoder(self._model, self._decode, size, self._vae_side, Graphs(self._context, vae))
        return Workspace(batch, hint, decoder, kept)

    def _compile(self, target: Target) -> None:
        """In the compiler's thread: run the networks on a target's shapes, so that they are compiled for these."""
        size, bucket = target
        space, faster = self.spaces.get(size), self._faster
        if space is None or faster is None:
            return
        faster.prepare()
        self._hold_while_timing()
        torch.set_num_threads(self._threads)  # set per thread, and built into compiled code
        stream = torch.cuda.stream(self._compile_stream)
        with self._trials.of(COMPILING), faster.compiling(), torch.no_grad(), stream:
            compiled = faster.functions()
            if bucket is None:
                space.decoder.try_out(compiled.decode)
            else:
                space.batch.try_out(bucket, compiled.predict(self._compile_side))
            self._synchronize()
        self._compiled[target] = compiled

    def _hold_while_timing(self) -> None:
        """Not before something is compiled, as this imports torch's compiler, which takes 0.5 s."""
        if self._on_cuda and not self._held:
            hold_while_timing(self.device_lock.hold)
            self._held = True

    def _wanted(self, faster: Faster | None) -> Faster | None:
        """The maker of faster functions, if the configuration wants one."""
        wanted = self._config.speed.compile
        if faster is None or COMPILING in self._trials.without or wanted is False:
            return None
        return faster if wanted is True or faster.automatic else None

    def _tried(
        self, function: Callable[[Inputs], Tensor], shape_of: Callable[[Inputs], torch.Size]
    ) -> Callable[[Inputs], Tensor]:
        """The same; with kernels of ours, its first call for each shape is their trial."""
        if not self._functions.fused:
            return function
        tried = set[torch.Size]()

        def run(inputs: Inputs) -> Tensor:
            shape = shape_of(inputs)
            if shape in tried:
                return function(inputs)
            try:
                with self._trials.of(GROUP_NORM):
                    result = function(inputs)
            except Exception as error:
                if not isinstance(error, torch.OutOfMemoryError):
                    self._trials.blame(GROUP_NORM)
                raise
            tried.add(shape)
            return result

        return run

    def _made_attention(self) -> Attention:
        usable, file = self._kernels(), None
        if len(usable) > 1:  # among other candidates, or in another number format, the choice is another
            names = [kernel.name for kernel in usable]
            file = cache_file("attention", self._model.device, str(self._model.dtype), names)
        return Attention(usable, trials=self._trials, note=self._fallbacks.note, kept=Choices(file))

    def _kernels(self) -> Sequence[Kernel]:
        without = [name for name in get_args(AttentionKernel) if trial_of(name) in self._trials.without]
        return kernels(self._model.device, self._config.speed.attention, self._fallbacks.note, without)

    def _side_stream(self) -> SideStream:
        return SideStream(self._model.device if self._config.speed.beside and self._by_torch else None)

    def _synchronize(self) -> None:
        if self._recorder is not None:
            self._recorder.synchronize()
        elif self._on_cuda:  # also without graphs: one stream must not get memory that another still uses
            torch.cuda.synchronize(self._model.device)

    def _make_room(self) -> bool:
        made = self.spaces.make_room()
        if made and self._recorder is not None:
            self._recorder.trim()
        return made

    @property
    def _on_cuda(self) -> bool:
        return self._model.device.type == "cuda"


def buckets(slots: int, *, exact: bool) -> tuple[int, ...]:
    """The batch sizes to run: all up to `slots` if `exact`, else powers of two and `slots`."""
    if exact:
        return tuple(range(1, slots + 1))
    return tuple(sorted({slots, *(2**n for n in range(slots.bit_length()) if 2**n < slots)}))
