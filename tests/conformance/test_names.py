"""Every name that the specification gives can be imported from where it says, takes what it says, and waits where it says.

What does not exist yet stands in the list too, and fails strictly: the day it exists this file turns red until it is moved.
A signature is kept if a call written for it works: its parameters come first, in order and with its defaults; whatever comes
after them has a default of its own.
"""

import importlib
import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest

CLIENTS = "clients over HTTP are not there yet"
TAMIYO = "the controller on its own is not there yet"
NISSA = "observability on its own is not there yet"


@dataclass(frozen=True)
class Specified:
    """One name of the specification.

    Attributes:
        home: Module that it is imported from.
        name: The name; with a dot, a method of a class.
        takes: Its parameters with their defaults, as they stand in a signature; None where it is not called.
        waits: Whether it is a coroutine function.
        later: Why it does not exist yet; empty where it does.
    """

    home: str
    name: str
    takes: str | None = None
    waits: bool = False
    later: str = ""


def group(home: str, later: str, *lines: str) -> Iterator[Specified]:
    """Read names as they are written in a signature: ``async Class.method(first, second=1)``."""
    for line in lines:
        waits, text = line.startswith("async "), line.removeprefix("async ")
        name, bracket, takes = text.partition("(")
        yield Specified(home, name, takes.removesuffix(")") if bracket else None, waits, later)


SPECIFIED = [
    # -- services ------------------------------------------------------------------------------------------------------
    *group("esper.services", "", "OonaClient", "SimpleBlueprintContract", "SimpleCompiledKernelContract"),
    *group(
        "esper.services.contracts", "", "BlueprintSubmissionRequest", "BlueprintSubmissionResponse", "KernelExecutionRequest",
        "HealthSignal", "BlueprintContract", "CompiledKernelContract", "BlueprintStatus", "KernelStatus",
        "SimpleBlueprintContract", "SimpleCompiledKernelContract",
    ),
    *group(
        "esper.services.oona_client", "",
        "OonaClient(redis_url='redis://localhost:6379')",
        "async OonaClient.connect()",
        "async OonaClient.publish(stream_key, data)",
        "async OonaClient.subscribe(stream_key, group_name, handler, start_from='>')",
        "async OonaClient.create_topic(topic, max_length=10000)",
        "async OonaClient.list_topics()",
        "async OonaClient.close()",
    ),
    # -- tamiyo --------------------------------------------------------------------------------------------------------
    *group("esper.services.tamiyo", "", "HealthSignalAnalyzer"),
    *group(
        "esper.services.tamiyo", TAMIYO, "TamiyoPolicy", "EnhancedGNNPolicy", "SeedSelector", "BanditSeedSelector",
        "PerformanceTracker", "BlueprintIntegration",
    ),
    *group(
        "esper.services.tamiyo.analyzer", "",
        "HealthSignalAnalyzer(window_size=1000)",
        "async HealthSignalAnalyzer.process_signal(signal)",
        "AnalysisResult",
    ),
    *group(
        "esper.services.tamiyo.seed_selector", TAMIYO,
        "SeedSelector",
        "async SeedSelector.select_seed(layer_id, available_seeds, context)",
        "BanditSeedSelector(strategy='ucb', redis_url=None)",
        "async BanditSeedSelector.select_seed(layer_id, available_seeds, context)",
    ),
    *group(
        "esper.services.tamiyo.performance_tracker", TAMIYO,
        "PerformanceTracker(redis_url=None)",
        "async PerformanceTracker.update_performance(entity_id, metric, value, timestamp=None)",
    ),
    *group(
        "esper.services.tamiyo.blueprint_integration", TAMIYO,
        "BlueprintIntegration",
        "Phase2IntegrationOrchestrator(blueprint_registry, oona_client, urza_url)",
        "async Phase2IntegrationOrchestrator.orchestrate_kernel_loading(layer_id, seed_idx, performance_requirements)",
        "KernelOrchestrator(blueprint_registry, oona_client, urza_url)",
    ),
    *group(
        "esper.services.tamiyo.policy", TAMIYO,
        "TamiyoPolicy",
        "GraphAttentionLayer(in_features, out_features, n_heads)",
        "PolicyConfig(node_features, hidden_dim, n_heads, n_layers, action_dim)",
        "EnhancedGNNPolicy(config)",
        "EnhancedGNNPolicy.forward(node_features, edge_index, edge_features=None)",
        "GraphPolicy(config)",
    ),
    *group(
        "esper.services.tamiyo.policy_trainer", TAMIYO,
        "PolicyTrainer(policy, config)",
        "async PolicyTrainer.train_step(experiences)",
        "TrainingConfig(policy_lr, value_lr, buffer_size, priority_alpha, batch_size, ppo_epochs, clip_param, safety_coef, "
        "max_grad_norm)",
        "PrioritizedReplayBuffer(capacity, alpha)",
        "Experience",
    ),
    *group(
        "esper.services.tamiyo.autonomous_service", TAMIYO,
        "AutonomousTamiyoService(config)",
        "async AutonomousTamiyoService.start()",
        "AutonomousTamiyoService.stop()",
        "ServiceConfig(policy_config, urza_url)",
    ),
    # -- tezzeret ------------------------------------------------------------------------------------------------------
    *group(
        "esper.services.tezzeret.compiler", "",
        "RealKernelCompiler()",
        "async RealKernelCompiler.compile_blueprint(blueprint, optimization_level='O2')",
        "KernelCompiler()",
        "CompilationError",
    ),
    *group(
        "esper.services.tezzeret.validator", "",
        "KernelValidator()",
        "async KernelValidator.validate_kernel(kernel, blueprint)",
        "ValidationResult",
    ),
    *group(
        "esper.services.tezzeret.worker", "",
        "TezzeretWorker(config)",
        "async TezzeretWorker.run()",
        "WorkerConfig(urza_url, num_workers, optimization_level)",
    ),
    # -- urza ----------------------------------------------------------------------------------------------------------
    *group("esper.services.urza.models", "", "Blueprint", "Kernel"),
    *group(
        "esper.services.urza.kernel_manager", "",
        "KernelManager(db_session, s3_client)",
        "async KernelManager.store_blueprint(blueprint, parent_id=None)",
        "async KernelManager.search_kernels_by_tags(tags, status=None, min_performance=None)",
        "async KernelManager.get_kernel_lineage(kernel_id)",
    ),
    *group("esper.services.urza.kernel_manager", "", "PersistentKernelCache"),
    *group("esper.services.urza.main", "", "app"),
    # -- nissa ---------------------------------------------------------------------------------------------------------
    *group(
        "esper.services.nissa.service", NISSA,
        "NissaService(config)",
        "async NissaService.collect_metrics()",
        "NissaConfig(collection_interval, alert_config)",
    ),
    *group(
        "esper.services.nissa.collectors", NISSA,
        "async SystemMetricsCollector.collect()",
        "async ExecutionMetricsCollector.collect()",
        "async TrainingMetricsCollector.collect()",
        "async ServiceMetricsCollector.collect()",
    ),
    *group("esper.services.nissa.analysis", NISSA, "MetricsAnalyzer()", "async MetricsAnalyzer.detect_anomalies()", "Anomaly"),
    *group(
        "esper.services.nissa.alerts", NISSA,
        "AlertManager(alert_config)",
        "async AlertManager.process_anomalies(anomalies)",
    ),
    *group(
        "esper.services.nissa.exporters", NISSA,
        "PrometheusExporter(registry)",
        "async PrometheusExporter.export_metrics()",
        "GrafanaExporter()",
        "async GrafanaExporter.export_dashboard()",
    ),
    # -- tolaria -------------------------------------------------------------------------------------------------------
    *group(
        "esper.services.tolaria.trainer", "",
        "TolariaTrainer(config)",
        "async TolariaTrainer.train(model, dataloader)",
        "TrainerConfig(num_epochs, tamiyo_url)",
    ),
    *group(
        "esper.services.tolaria.trainer", "",
        "CheckpointManager()",
        "async CheckpointManager.save_checkpoint(state)",
    ),
    # -- clients -------------------------------------------------------------------------------------------------------
    *group(
        "esper.services.clients", CLIENTS,
        "TamiyoClient(base_url)",
        "async TamiyoClient.get_adaptation_decision(system_state)",
    ),
    *group(
        "esper.services.clients", "",
        "UrzaClient(base_url)",
        "async UrzaClient.submit_blueprint(request)",
        "async UrzaClient.search_kernels(tags, status=None, min_performance=None)",
        "async UrzaClient.upload_kernel(artifact)",
        "CircuitBreaker(failure_threshold=5, recovery_timeout=60)",
        "CircuitBreaker.can_proceed()",
        "CircuitBreaker.record_success()",
        "CircuitBreaker.record_failure()",
    ),
    *group("esper.services.clients.tamiyo_client", CLIENTS, "TamiyoClient(base_url)"),
    # -- what the specification implies --------------------------------------------------------------------------------
    *group(
        "esper.kasmina", "",
        "MorphableModel",
        "async MorphableModel.load_kernel(layer_name, seed_idx, artifact_id)",
        "async MorphableModel.apply_adaptation(signal)",
    ),
    *group("esper.contracts", "", "AdaptationSignal", "AdaptationDecision", "SystemStatePacket", "CompiledKernelArtifact"),
    *group("esper.ir", "", "BlueprintIR", "BlueprintRegistry()"),
]  # fmt: skip

ALIASES = {
    "esper.services.contracts": (
        ("SimpleBlueprintContract", "BlueprintContract"),
        ("SimpleCompiledKernelContract", "CompiledKernelContract"),
    ),
    "esper.services.tezzeret.compiler": (("RealKernelCompiler", "KernelCompiler"),),
}
"""Names that tell a history, and the plain name of the same thing."""
LATER_ALIASES = {
    "esper.services.tamiyo.policy": ("EnhancedGNNPolicy", "GraphPolicy"),
    "esper.services.tamiyo.blueprint_integration": ("Phase2IntegrationOrchestrator", "KernelOrchestrator"),
}


def cases(specified: list[Specified]) -> list[Any]:
    """Return the list as parameters of a test; what comes later must fail, for no other reason than that it is not there."""
    return [
        pytest.param(
            one,
            id=f"{one.home.removeprefix('esper.')}:{one.name}",
            marks=pytest.mark.xfail(reason=one.later, strict=True, raises=(ImportError, AttributeError))
            if one.later
            else (),
        )
        for one in specified
    ]


def found(one: Specified) -> Any:
    """Import a name from where the specification puts it."""
    value: Any = importlib.import_module(one.home)
    for part in one.name.split("."):
        value = getattr(value, part)
    return value


def parameters(thing: Callable[..., object], *, bound: bool) -> list[inspect.Parameter]:
    """Return what a caller passes: not the object that a method belongs to."""
    every = list(inspect.signature(thing).parameters.values())
    return every if bound else every[1:]


def complaint(one: Specified, thing: Any) -> str:
    """Return how a thing differs from what is specified, or nothing."""
    if inspect.iscoroutinefunction(thing) != one.waits:
        return f"{one.name} {'is no' if one.waits else 'is a'} coroutine function"
    if one.takes is None:
        return ""
    wanted = parameters(eval(f"lambda {one.takes}: None"), bound=True)
    actual = parameters(thing, bound=isinstance(thing, type) or "." not in one.name)
    for place, parameter in enumerate(wanted):
        same = next((other for other in actual if other.name == parameter.name), None)
        if same is None:
            return f"{one.name} has no parameter {parameter.name}"
        if same.kind is not inspect.Parameter.KEYWORD_ONLY and actual.index(same) != place:
            return f"{parameter.name} is not parameter {place} of {one.name}"
        if parameter.default is not parameter.empty and same.default != parameter.default:
            return f"{parameter.name} defaults to {same.default!r}, not {parameter.default!r}"
    names = {parameter.name for parameter in wanted}
    more = [other.name for other in actual if other.name not in names and needed(other)]
    return f"{one.name} also needs {', '.join(more)}" if more else ""


def needed(parameter: inspect.Parameter) -> bool:
    variable = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return parameter.default is parameter.empty and parameter.kind not in variable


@pytest.mark.parametrize("one", cases(SPECIFIED))
def test_a_specified_name_is_there_and_is_called_as_specified(one: Specified) -> None:
    assert complaint(one, found(one)) == ""


@pytest.mark.parametrize(("home", "pairs"), ALIASES.items())
def test_a_specified_name_that_tells_a_history_is_the_plain_thing(
    home: str, pairs: tuple[tuple[str, str], ...]
) -> None:
    module = importlib.import_module(home)
    for specified, plain in pairs:
        assert getattr(module, specified) is getattr(module, plain)


@pytest.mark.xfail(reason=TAMIYO, strict=True, raises=ImportError)
@pytest.mark.parametrize(("home", "pair"), LATER_ALIASES.items())
def test_a_later_name_that_tells_a_history_is_the_plain_thing(home: str, pair: tuple[str, str]) -> None:
    module = importlib.import_module(home)
    assert getattr(module, pair[0]) is getattr(module, pair[1])


def test_every_method_of_the_store_can_be_awaited() -> None:
    manager = found(Specified("esper.services.urza.kernel_manager", "KernelManager"))
    methods = {name: getattr(manager, name) for name in dir(manager) if not name.startswith("_")}
    assert {name for name, method in methods.items() if not inspect.iscoroutinefunction(method)} == set()
    assert len(methods) >= 10


def test_nothing_is_listed_twice() -> None:
    names = [(one.home, one.name) for one in SPECIFIED]
    assert len(names) == len(set(names))


class Planted:
    """A class that breaks its specification in every way that is looked for."""

    def __init__(self, first: int, *, second: int = 2) -> None: ...

    async def waits(self, one: int, two: int = 2) -> None: ...

    def acts(self, one: int, two: int, three: int) -> None: ...


@pytest.mark.parametrize(
    ("name", "takes", "waits", "told"),
    [
        ("Planted", "first, second=2", False, ""),
        ("Planted", "first", False, ""),
        ("Planted", "first, second=3", False, "second defaults to 2, not 3"),
        ("Planted", "", False, "also needs first"),
        ("Planted.waits", "one, two=2", True, ""),
        ("Planted.waits", "one, two=2", False, "is a coroutine function"),
        ("Planted.acts", "one, two, three", True, "is no coroutine function"),
        ("Planted.acts", "two, one, three", False, "two is not parameter 0"),
        ("Planted.acts", "one, two, four", False, "has no parameter four"),
        ("Planted.acts", "one, two", False, "also needs three"),
    ],
)
def test_a_planted_difference_is_noticed(name: str, takes: str, waits: bool, told: str) -> None:
    thing: Any = Planted if name == "Planted" else getattr(Planted, name.partition(".")[2])
    said = complaint(Specified("here", name, takes, waits), thing)
    assert told in said
    assert bool(told) == bool(said)
