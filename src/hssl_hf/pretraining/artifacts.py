"""What a run produces: measurements during training; the export, evaluations and a report at the end."""

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from statistics import median
from time import perf_counter

from hssl_hf.config.recipe import Recipe
from hssl_hf.engine.distributed import on_main_process
from hssl_hf.evaluation.classification import accuracy_interval
from hssl_hf.evaluation.encoder import raw_pixel_encoder
from hssl_hf.evaluation.linear import LinearConfig
from hssl_hf.evaluation.probe import Probe
from hssl_hf.evaluation.records import PIXELS, UNTRAINED
from hssl_hf.evaluation.splits import split_record
from hssl_hf.models.modeling_student_teacher import StudentTeacherPreTrainedModel
from hssl_hf.publish.export import CardContext, export_backbone, update_card
from hssl_hf.publish.model_card import SUBJECT
from hssl_hf.publish.origin import Origin
from hssl_hf.runs import manifest
from hssl_hf.runs.metric_logger import MetricLogger, read_log
from hssl_hf.runs.run_directory import RESULTS, card_context, image_processor_for
from hssl_hf.visualization.figures import draw_export


class RunArtifacts:
    """Probes, manifest, export and figures of a run; only the main process writes.

    Args:
        recipe, folder, logger: of the run.
        images_per_epoch: length of an epoch.
        seconds: of the run before it was resumed.
        origin: of the weights from which the run started; None for random ones.
        stop: whether this process is to stop, which ends a probe.
    """

    def __init__(
        self,
        recipe: Recipe,
        folder: Path,
        logger: MetricLogger,
        images_per_epoch: int,
        seconds: float,
        origin: Origin | None,
        stop: Callable[[], bool] = lambda: False,
    ):
        self.recipe, self.folder, self.logger = recipe, folder, logger
        processor, workers = image_processor_for(recipe), recipe.data.num_workers
        self.probe = Probe(recipe.probe, processor, logger.accelerator, workers, stop)
        self.test_images = 0  # of the probe
        self.before, self.started = seconds, perf_counter()
        self.manifest = manifest.begin(recipe, folder, logger.accelerator, images_per_epoch, origin)
        if logger.accelerator.is_main_process:  # for an export of the unfinished run, and for a resumed one
            manifest.write(folder, self.manifest)

    @property
    def seconds(self) -> float:
        """Wall time of the run so far, without time lost between the last checkpoint and an interruption."""
        return self.before + perf_counter() - self.started

    def measure(self, method: StudentTeacherPreTrainedModel | None, step: int, *, last: bool = False) -> None:
        """Evaluate the network that will be exported, and once the raw pixels; the curves are redrawn.

        All processes have to call this. Nothing is logged if one of them is to stop.

        Args:
            method: with full weights; None where there is no probe.
            last: whether the training has ended; a linear probe is trained then and before the first step.
        """
        if method is not None:
            base = method.get_network(self.recipe.run.export_network).base
            base.to(self.logger.accelerator.device).eval()
            linear = self.recipe.probe.linear and (step == 0 or last)
            results = self.probe.classify(lambda pixels: base(pixels)[0], f"probe at step {step}", linear=linear)
            base.train()
            if step == 0 and results:
                pixels = self.probe.classify(raw_pixel_encoder, "probe of raw pixels", linear=linear)
                results = pixels and results | {f"{name}_pixels": result for name, result in pixels.items()}
            if results:
                self.logger.log(step, {name: result.accuracy() for name, result in results.items()})
                self.test_images = len(results["knn_top1"])
        on_main_process(self.logger.accelerator, self.logger.draw)

    def finish(self, method: StudentTeacherPreTrainedModel, steps: int, corrupt: list[str], several: int) -> list[str]:
        """Export, write manifest, records and figures.

        Args:
            method: with full weights.
            steps: of the run.
            corrupt: names of images that could not be decoded.
            several: number of files with several images, of which the first was read.
        Returns:
            the lines of the report.
        """
        log = [line for line in read_log(self.logger.path) if "memory_gib" in line]
        self.manifest |= {
            "steps": steps, "images_seen": steps * self.recipe.optim.batch_size,
            "undecodable": len(corrupt), "first_of_several": several,
            "seconds": round(self.seconds, 1),
        }  # fmt: skip
        if log:  # which a user may have removed before the run was resumed
            self.manifest |= {
                "peak_memory_gib": round(max(line["memory_gib"] for line in log), 3),
                "images_per_second": round(median(line["images_per_second"] for line in log), 2),
            }
        manifest.write(self.folder, self.manifest)
        lines = [f"{len(corrupt)} images could not be decoded: {', '.join(corrupt[:5])}"] if corrupt else []
        lines += [f"{several} files hold several images, of which the first was read"] if several else []
        if not self.recipe.run.export:
            return [*lines, f"run     {self.folder}\ncurves  {self.logger.curves}\nexport  hssl-hf export {self.folder}"]
        network, processor = self.recipe.run.export_network, self.probe.extractor.processor
        context = CardContext(card_context(self.folder, self.recipe).about)  # without records of an earlier run
        export = export_backbone(method, self.folder / "export", network=network, processor=processor, context=context)
        if self.recipe.probe.path is not None:
            lines += self._record()
            splits = self.recipe.probe.splits(processor)
            draw_export(export, processor, *splits, self.folder, self.recipe.probe.representation)
        update_card(export, card_context(self.folder, self.recipe))
        lines += ["", f"run     {self.folder}\ncurves  {self.logger.curves}\nexport  {export}", "", "Load it anywhere:"]
        return [*lines, f'  from transformers import AutoModel; model = AutoModel.from_pretrained("{export}")']

    def _record(self) -> list[str]:
        """Records of the last probe, of the untrained backbone and of raw pixels; returns lines for the screen."""
        probe, log = self.recipe.probe, read_log(self.logger.path)
        protocols = {"knn_top1": ("k-NN", {"num_neighbors": probe.num_neighbors, "temperature": probe.temperature})}
        if probe.linear:
            protocols["linear_top1"] = ("linear probe", asdict(LinearConfig()))
        results, lines = self.folder / RESULTS, []
        results.unlink(missing_ok=True)
        for metric, (title, used) in protocols.items():
            start = next((line for line in log if f"{metric}_pixels" in line), None)
            if start is None:
                lines.append(f"no records of {title}, since its first figures are missing in {self.logger.path}")
                continue
            end = [line for line in log if metric in line][-1]
            accuracies = {SUBJECT: end[metric], UNTRAINED: start[metric], PIXELS: start[f"{metric}_pixels"]}
            lines.append(f"{title} top-1 on {self.test_images} images ({probe.test_split}), labels from {probe.train_split}:")
            for subject, value in accuracies.items():
                interval = accuracy_interval(value, self.test_images)
                settings = (probe, probe.representation, used, subject, self.recipe.seed)
                split_record(metric, value, self.test_images, *settings, interval=interval).append_to(results)
                lines.append(f"  {subject:22s}{value:6.2f} %  [{interval[0]:.2f}, {interval[1]:.2f}]")
        return lines
