"""From settings to a running engine: find the model, read it, choose a backend, size the cache, put it together.

Knows: which part comes after which, and what was chosen where a setting says "auto".
Does not know: requests, text that a person types, how any part works.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from legato.config import Config
from legato.core.spec import ArchSpec
from legato.engine import Engine
from legato.errors import UsageError
from legato.kernels.cpu import Library, NativeBackend, load_library
from legato.kernels.ops import Backend, Executor, KvFormat
from legato.measure import cost
from legato.measure.calibrated import Calibrated, read_machine, widest_machine
from legato.measure.step_time import StepCost
from legato.models.bits import bits_by_role
from legato.models.decoder import Decoder
from legato.models.load import Blueprint, build_decoder, read_blueprint
from legato.runtime.kv_store import KvPlan, free_memory, plan_pages
from legato.runtime.runner import Runner
from legato.text.grammar import Grammars
from legato.text.template import ChatTemplate
from legato.text.tokenizer import Tokenizer
from legato.weights.hub import Report, resolve_model
from legato.weights.source import ModelSource, open_model
from legato.weights.tensor import WeightFormat

if TYPE_CHECKING:
    from legato.measure.case import Setting


@dataclass(slots=True)
class Assembly:
    """A loaded model and its engine. `notes` are lines that a person should see once."""

    config: Config
    source: ModelSource
    blueprint: Blueprint
    tokenizer: Tokenizer
    template: ChatTemplate | None
    backend: Backend
    executor: Executor
    runner: Runner
    engine: Engine
    kv_format: KvFormat
    kv_plan: KvPlan
    vocab_size: int
    notes: list[str]

    @property
    def capacity(self) -> str:
        """How many users fit, for a person."""
        return self.kv_plan.describe()

    @property
    def spec(self) -> ArchSpec:
        return self.blueprint.spec

    @property
    def setting(self) -> Setting:
        """What requests run on, for explanations: the machine as far as it was calibrated."""
        from legato.measure.case import Setting

        native, cache_dir = self.backend.name != "reference", self.config.cache_dir
        found = read_machine(cache_dir, self.executor.isa, self.executor.threads)
        machine = found.machine if found.machine is not None and found.machine.products else None
        return Setting(
            spec=self.spec,
            bits=step_bits(self.config, self.blueprint, self.backend),
            kv=str(self.kv_format),
            threads=self.executor.threads,
            page_size=self.config.page_size,
            chunk=self.config.max_step_tokens,
            kv_formats=("bf16", "int8", "int4") if native else ("f32",),
            machine=machine,
            note="" if machine is not None else _why_no_walls(found, native, cache_dir),
            wider=widest_machine(cache_dir, self.executor.isa),
            naive=self.config.naive,
        )

    def naive_engine(self) -> Engine:
        """A second engine on the same model and pages, without cache. Only one of the two may have work at a time."""
        expected = _expected(self.config, self.blueprint, self.backend, self.executor, self.kv_format)
        return _engine(
            self.config, self.runner, self.kv_plan, self.vocab_size, self.tokenizer, expected, use_cache=False
        )


def assemble(config: Config, fetching: Report, loading: Report) -> Assembly:
    """Loads what `config` names. Everything that can be refused is refused before weights are packed.

    fetching, loading  told of a download, and of weights being packed
    """
    source = open_source(config, fetching)
    blueprint = read_blueprint(source, config.context)
    spec = blueprint.spec
    tokenizer = open_tokenizer(source)
    template = None
    if tokenizer.chat_template is not None:
        template = ChatTemplate(tokenizer.chat_template, tokenizer.special_tokens, origin=str(source.path))
        template.warm()  # a child that renders starts while the weights are read
    backend, notes = choose_backend(config, spec)
    kv_format = choose_kv(config, backend)
    _plan_kv(config, spec, backend, kv_format)
    decoder = _load(config, blueprint, backend, loading)
    kv_plan = _plan_kv(config, spec, backend, kv_format)  # again: the weights have taken their memory now
    executor = backend.build(
        spec,
        decoder.forward,
        num_pages=kv_plan.num_pages,
        page_size=config.page_size,
        kv_format=kv_format,
        max_tokens=config.max_step_tokens,
        max_seqs=config.max_seqs,
    )
    if config.kv_memory is not None:
        executor.touch_pages()  # what was asked for by number is there from now on, or refused now
    vocab_size = min(tokenizer.vocab_size, spec.vocab_size)
    runner = Runner(
        executor,
        page_size=config.page_size,
        vocab_size=vocab_size,
        eos_ids=tokenizer.eos_ids,
        grammars=Grammars(tokenizer, vocab_size),
    )
    return Assembly(
        config=config,
        source=source,
        blueprint=blueprint,
        tokenizer=tokenizer,
        template=template,
        backend=backend,
        executor=executor,
        runner=runner,
        engine=_engine(
            config,
            runner,
            kv_plan,
            vocab_size,
            tokenizer,
            _expected(config, blueprint, backend, executor, kv_format),
            use_cache=not config.naive,
        ),
        kv_format=kv_format,
        kv_plan=kv_plan,
        vocab_size=vocab_size,
        notes=[*blueprint.notes, *notes],
    )


def _plan_kv(config: Config, spec: ArchSpec, backend: Backend, kv_format: KvFormat) -> KvPlan:
    page_bytes = backend.page_bytes(spec, config.page_size, kv_format)
    context = config.context or spec.context_length
    return plan_pages(page_bytes, config.page_size, context, config.kv_memory, free_memory())


def _engine(
    config: Config,
    runner: Runner,
    kv_plan: KvPlan,
    vocab_size: int,
    tokenizer: Tokenizer,
    expected: StepCost,
    use_cache: bool,
) -> Engine:
    return Engine(
        runner,
        num_pages=kv_plan.num_pages,
        page_size=config.page_size,
        max_tokens=config.max_step_tokens,
        max_seqs=config.max_seqs,
        context_length=kv_plan.context_length,
        vocab_size=vocab_size,
        eos_ids=frozenset(tokenizer.eos_ids),
        use_cache=use_cache,
        itl_slo_ms=config.itl_slo_ms,
        step_cost=expected,
        device_laps=runner.executor.laps_ns,
    )


def _expected(
    config: Config, blueprint: Blueprint, backend: Backend, executor: Executor, kv_format: KvFormat
) -> StepCost:
    """What steps may cost, until some have been measured: as calibrated, or as on an ordinary machine."""
    bits = step_bits(config, blueprint, backend)
    found = read_machine(config.cache_dir, executor.isa, executor.threads).machine
    machine = found if found is not None and found.products else None
    return StepCost.expected(blueprint.spec, bits, str(kv_format), machine, cores=executor.threads)


def open_source(config: Config, fetching: Report) -> ModelSource:
    """The model's files; fetches a built-in model the first time."""
    return open_model(resolve_model(config.model, config.cache_dir, fetching))


def _load(config: Config, blueprint: Blueprint, backend: Backend, loading: Report) -> Decoder:
    weights = None if config.weights == "auto" else WeightFormat(config.weights)
    told = 0

    def progress(done: int, total: int) -> None:
        nonlocal told
        if not told:
            loading.start(total, "loading weights")
        loading.advance(done - told)
        told = done

    try:
        return build_decoder(blueprint, backend, progress, weights)
    finally:
        loading.done()


def open_tokenizer(source: ModelSource) -> Tokenizer:
    if source.kind == "gguf":
        return Tokenizer.from_gguf(source.path, source.metadata)
    return Tokenizer.from_files(source.tokenizer_files)


def _reference() -> Backend:
    from legato.kernels.reference import ReferenceBackend  # only here: few runs need it

    return ReferenceBackend()


def choose_backend(config: Config, spec: ArchSpec) -> tuple[Backend, list[str]]:
    """The backend, and a word when "auto" had to fall back to the slow one."""
    if config.backend == "reference":
        return _reference(), []
    library = load_library()
    if isinstance(library, str):
        reason: str | None = library
    else:
        native = _native(config, library)
        reason = native.supports(spec)
        if reason is None:
            return native, _crowded(config, library)
    if config.backend == "native":
        raise UsageError(f"backend=native is not possible: {reason}; or use the slow one: --backend reference")
    return _reference(), [f"the slow reference backend is used: {reason}"]


def open_backend(config: Config) -> tuple[Backend, str, int]:
    """The backend that would be used for most models, its instruction set and threads."""
    library = load_library()
    if config.backend == "reference" or isinstance(library, str):
        if config.backend == "native":
            raise UsageError(f"backend=native is not possible: {library}")
        return _reference(), "numpy", config.threads or os.cpu_count() or 1
    native = _native(config, library)
    return native, native.isa, native.threads


def _native(config: Config, library: Library) -> NativeBackend:
    levels = library.isas()
    obstacle = next((level.obstacle for level in levels if level.name == config.isa), "")
    if obstacle:
        usable = [level.name for level in reversed(levels) if not level.obstacle]
        name = "isa" if config.sources["isa"] == "argument" else config.sources["isa"]
        fix = f"use {', '.join(usable)}, or leave it out"
        raise UsageError(f"{name}={config.isa} cannot be used here: {obstacle}; {fix}")
    return NativeBackend(config.threads, config.isa, library=library)


def _crowded(config: Config, library: Library) -> list[str]:
    """A word where threads were asked for that have no processor of their own."""
    if config.threads is None:
        return []
    processors = library.topology().allowed_cpus
    if config.threads <= processors:
        return []
    return [f"{config.threads} threads wait for each other on {processors} processors; leave --threads out"]


def choose_kv(config: Config, backend: Backend) -> KvFormat:
    """int8 on the native backend; the reference keeps float32, whatever else is asked for is refused."""
    if backend.name == "reference":
        if config.kv not in ("auto", KvFormat.F32):
            raise UsageError(f"kv={config.kv} is not allowed: the reference backend keeps f32; leave kv out")
        return KvFormat.F32
    if config.kv == KvFormat.F32:
        raise UsageError("kv=f32 is not allowed: the native backend keeps bf16, int8 or int4; try --backend reference")
    return KvFormat.INT8 if config.kv == "auto" else KvFormat(config.kv)


def step_bits(config: Config, blueprint: Blueprint, backend: Backend) -> dict[cost.Role, float]:
    """Bits a weight that a step reads, by what it is for: as in the file, or as it was made while loading."""
    bits = bits_by_role(blueprint)
    made = WeightFormat.F32 if backend.name == "reference" else config.weights
    if made == "auto":
        return bits
    size = 8 * WeightFormat(made).block_bytes / WeightFormat(made).block
    expands = backend.name == "reference"
    return {role: size if role is not cost.Role.EMBED and (expands or b >= 16) else b for role, b in bits.items()}


def _why_no_walls(found: Calibrated, native: bool, cache_dir: Path) -> str:
    """For clients too: no paths of this machine."""
    if not native:
        return "the reference backend has none"
    if str(cache_dir) not in found.note:
        return found.note
    return "what was calibrated here cannot be used any more: run `legato calibrate`"


def model_name(config: Config, source: ModelSource) -> str:
    """What receipts call the model: a name as it was given, a path by its last part."""
    given = config.model
    return Path(source.path).name if Path(given).exists() else given
