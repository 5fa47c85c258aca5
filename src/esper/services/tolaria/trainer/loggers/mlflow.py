"""MLflow; ``MLFLOW_TRACKING_URI`` and its other variables work as everywhere."""

from collections.abc import Mapping
from os import PathLike
from pathlib import Path

from mlflow import MlflowClient

from esper.services.tolaria.events import GrowthEvent


class MLflowLogger:
    """Logs metrics, and growth events as tags of the run.

    Args:
        folder: Not needed: MLflow's tracking store has everything.
        run_id: Name of the run.
        experiment: Name of the experiment; made where there is none.
        tracking_uri: Address of the store, or None for MLflow's own setting.
    """

    def __init__(
        self,
        folder: str | PathLike[str] = Path(),
        *,
        run_id: str = "",
        experiment: str = "esper",
        tracking_uri: str | None = None,
    ) -> None:
        self._client = MlflowClient(tracking_uri)
        found = self._client.get_experiment_by_name(experiment)
        number = found.experiment_id if found is not None else self._client.create_experiment(experiment)
        self.run_id: str = self._client.create_run(number, run_name=run_id or None).info.run_id
        self._count = 0

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Log one value per metric."""
        for name, value in metrics.items():
            self._client.log_metric(self.run_id, name, value, step=step)

    def event(self, event: GrowthEvent) -> None:
        """Set a tag that tells of a growth event."""
        self._client.set_tag(self.run_id, f"growth.{self._count:04d}.{event.kind.value}", str(event))
        self._count += 1

    def close(self) -> None:
        """End the run."""
        self._client.set_terminated(self.run_id)
