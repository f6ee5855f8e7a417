"""The trackers that have a name: TensorBoard, MLflow, Weights & Biases, trackio. Each needs its package, and none sends
anything anywhere unless its own environment variables say so.
"""

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trainers.run_folder import RunFolder

# The packages are extras, which a type checker need not find.
# pyright: reportMissingImports=false

PROJECT = "lora-core"
"""What runs are filed under where that is not said otherwise."""


MLFLOW_STATUS = {"finished": "FINISHED", "stopped": "KILLED", "failed": "FAILED"}


class TensorBoard:
    """Curves in tensorboard/ of the run folder: `tensorboard --logdir runs`."""

    package = "tensorboard"

    def start(self, run_id: str, name: str, config: Mapping[str, Any]) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(RunFolder(Path(config["output_dir"])).tensorboard))

    def log(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()  # what is noted as told must outlive a kill

    def finish(self, status: str) -> None:
        self._writer.close()


class MLflow:
    """Runs in mlruns/ beside the run folder, or where MLFLOW_TRACKING_URI says: `mlflow ui`."""

    package = "mlflow"

    def start(self, run_id: str, name: str, config: Mapping[str, Any]) -> None:
        import mlflow

        uri = os.environ.get("MLFLOW_TRACKING_URI")
        if not uri:  # files must be allowed since MLflow 3.13, which would rather have a database
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
            uri = (Path(config["output_dir"]).absolute().parent / "mlruns").as_uri()
        self._client = mlflow.MlflowClient(uri)
        project = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        found = self._client.get_experiment_by_name(project)
        experiment = found.experiment_id if found else self._client.create_experiment(project)
        runs = self._client.search_runs([experiment], f"tags.lora_core_run = '{run_id}'", max_results=1)
        if runs:
            self._run = runs[0].info.run_id
            self._client.update_run(self._run, status="RUNNING")
            return
        self._run = self._client.create_run(experiment, tags={"lora_core_run": run_id}, run_name=name).info.run_id
        for setting, value in config.items():
            self._client.log_param(self._run, setting, value)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        from mlflow.entities import Metric

        now = int(1000 * time.time())
        self._client.log_batch(self._run, metrics=[Metric(name, value, now, step) for name, value in values.items()])

    def finish(self, status: str) -> None:
        self._client.set_terminated(self._run, MLFLOW_STATUS[status])


class WeightsAndBiases:
    """Runs in wandb/ of the run folder, for `wandb sync`; WANDB_MODE=online sends them at once."""

    package = "wandb"

    def start(self, run_id: str, name: str, config: Mapping[str, Any]) -> None:
        import wandb

        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            id=run_id,
            name=name,
            config=dict(config),
            dir=config["output_dir"],
            resume="allow",
            mode=os.environ.get("WANDB_MODE", "offline"),  # type: ignore[arg-type]
            settings=wandb.Settings(silent=True),  # the run prints its figures itself
        )

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def finish(self, status: str) -> None:
        self._run.finish(exit_code=0 if status == "finished" else 1)


class Trackio:
    """Runs in trackio's own folder of this user, which TRACKIO_DIR says: `trackio show`."""

    package = "trackio"

    def start(self, run_id: str, name: str, config: Mapping[str, Any]) -> None:
        import trackio

        self._trackio = trackio
        trackio.init(
            project=os.environ.get("TRACKIO_PROJECT", PROJECT),
            name=f"{name}-{run_id}",
            config=dict(config),
            resume="allow",
        )

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._trackio.log(dict(values), step=step)

    def finish(self, status: str) -> None:
        self._trackio.finish()


TRACKERS: dict[str, Any] = {
    "tensorboard": TensorBoard,
    "mlflow": MLflow,
    "wandb": WeightsAndBiases,
    "trackio": Trackio,
}
"""By the names that the setting `track` takes; each is the extra of that name."""
