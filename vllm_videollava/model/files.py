"""Tells vLLM's loader which files make up a checkpoint: a fine-tune's own, its base's, its towers'."""

from collections.abc import Callable, Iterator
from pathlib import Path

from vllm.config import ModelConfig
from vllm.model_executor.model_loader import DefaultModelLoader

from vllm_videollava.checkpoints.adapter_config import read_json_object
from vllm_videollava.checkpoints.fine_tune import FineTune, check_fine_tune, find_fine_tune, locate_base
from vllm_videollava.checkpoints.weight_files import find_file, whole_model_pattern
from vllm_videollava.tensors.merging import BASE

Source = DefaultModelLoader.Source


class CheckpointFiles:
    """The files of the checkpoint that `model_config` names; vLLM changes the name when other weights are loaded."""

    def __init__(self, model_config: ModelConfig) -> None:
        self._model_config, self._first = model_config, model_config.model

    @property
    def fine_tune(self) -> FineTune | None:
        model, values = self._model_config.model, self._model_config.hf_config.original_values
        if model != self._first and (file := find_file(model, "config.json")):
            values = read_json_object(file)
        return find_fine_tune(model, values or {})

    def _base(self, fine_tune: FineTune) -> str:
        model = self._model_config.model
        if model == self._first:
            return self._model_config.hf_config.base_model
        base = fine_tune.base and locate_base(fine_tune.base, model)
        check_fine_tune(model, fine_tune.files, base, "load a whole model, or a fine-tune that names its base")
        return base

    @property
    def first_patterns(self) -> list[str] | None:
        """Return the patterns for the checkpoint's first files, or None for vLLM's own choice."""
        if fine_tune := self.fine_tune:
            return [fine_tune.files[0]]
        return _patterns(self._model_config.model)

    def other_sources(self, lacks_tower: Callable[[str], bool]) -> Iterator[Source]:
        """Yield the sources of what the checkpoint's first files lack.

        Args:
            lacks_tower: whether the sources before this one have lacked a tower, `image_tower` or `video_tower`.
        """
        config = self._model_config.hf_config
        if fine_tune := self.fine_tune:
            for name in fine_tune.files[1:]:
                yield Source(self._model_config.model, None, allow_patterns_overrides=[name])
            base = self._base(fine_tune)
            yield Source(base, None, prefix=BASE, allow_patterns_overrides=_patterns(base))
        for tower, location in (("image_tower", config.image_tower_source), ("video_tower", config.video_tower_source)):
            if location and lacks_tower(tower):
                yield Source(location, None, prefix=f"{tower}.")


def _patterns(checkpoint: str) -> list[str] | None:
    pattern = whole_model_pattern(Path(checkpoint)) if Path(checkpoint).is_dir() else None
    return pattern and [pattern]
