"""Fine-tuning: its model and its labels are the references', the folder is as the original's, and the loss falls."""

import json
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
import torch
from peft import PeftModel
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import LlamaTokenizer, VideoLlavaForConditionalGeneration, VideoLlavaImageProcessor

from helpers.asking import original_prompt
from helpers.checkpoints import (
    IMAGE_SIZE,
    change_config,
    change_tensors,
    copy_checkpoint,
    write_transformers_checkpoint,
)
from helpers.clips import decode_all
from helpers.original_answer import pixels_of, reference_ids
from helpers.training_data import ANSWERS, ENTRIES, QUESTIONS, write_data
from original.model import OriginalVideoLlava
from training.batches import NOT_LEARNT, Batch, BatchMaker
from training.data_files import Entry, read_entries
from training.finetune_lora import finetune, learning_rate_factor, parse_args
from training.trainable import TrainableVideoLlava, load_model, read_base_config
from vllm_videollava.checkpoints.fine_tune import find_fine_tune
from vllm_videollava.tensors.merging import BASE, merge

CPU = torch.device("cpu")
RANK, ALPHA = 4, 8
LINEAR = [*(f"self_attn.{name}_proj" for name in "qkvo"), *(f"mlp.{name}_proj" for name in ("gate", "up", "down"))]


class Base:
    """What training makes of a base and of `ENTRIES`."""

    def __init__(self, folder: Path, data: Path) -> None:
        config = read_base_config(str(folder))
        self.maker = BatchMaker(str(folder), config)
        self.entries: list[Entry] = read_entries([data], data.parent)[0]
        self.batch: Batch = self.maker.make(self.entries)
        self.model: TrainableVideoLlava = load_model(str(folder), config, self.maker.tokenizer.placeholder_ids, CPU)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return write_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def transformers_checkpoint(checkpoint, tmp_path_factory) -> Path:
    return write_transformers_checkpoint(tmp_path_factory.mktemp("hf") / "base", checkpoint)


@pytest.fixture(scope="module")
def original_base(checkpoint, data) -> Base:
    return Base(checkpoint, data)


@pytest.fixture(scope="module")
def transformers_base(transformers_checkpoint, data) -> Base:
    return Base(transformers_checkpoint, data)


def arguments(base: Path, data: Path, output: Path, *more: str) -> Namespace:
    words = f"--base {base} --data {data} --media-folder {data.parent} --output {output} --device cpu"
    options = f"--rank {RANK} --alpha {ALPHA} --batch-size 2 --learning-rate 3e-3 --projector-learning-rate 1e-3"
    return parse_args([*words.split(), *options.split(), *more])


# Each conversation of ENTRIES, written out: its text with <media> for each medium, its media, and its answers.
CONVERSATIONS = [
    (
        f"{original_prompt('<media><media>', QUESTIONS[0])} {ANSWERS[0]}</s>USER: {QUESTIONS[1]} ASSISTANT: "
        f"{ANSWERS[1]}</s>",
        ["one.mp4", "one.png"],
        [ANSWERS[0], ANSWERS[1]],
    ),
    (f"{original_prompt('', QUESTIONS[2])} {ANSWERS[2]}</s>", [], [ANSWERS[2]]),
    (f"{original_prompt('<media>', QUESTIONS[3])} {ANSWERS[3]}</s>", ["two.mp4"], [ANSWERS[3]]),
    (f"{original_prompt('<media>', QUESTIONS[3])} {ANSWERS[1]}</s>", ["one.png"], [ANSWERS[1]]),
]


def reference_labels(ids: list[int], answers: list[list[int]]) -> list[int]:
    """Search each answer's tokens and EOS in a conversation's ids; everything else is not learnt."""
    labels, start = [NOT_LEARNT] * len(ids), 0
    for answer in answers:
        wanted = [*answer, 2]
        start = next(at for at in range(start, len(ids)) if ids[at : at + len(wanted)] == wanted)
        labels[start : start + len(wanted)] = wanted
        start += len(wanted)
    return labels


def original_ids(checkpoint: Path, text: str) -> list[int]:
    """Tokenise as transformers 4.31: after `</s>`, the first token loses the mark of a word's beginning."""
    model = sentencepiece.SentencePieceProcessor(model_file=str(checkpoint / "tokenizer.model"))
    begin, *others = text.split("</s>")[:-1]
    ids = [*reference_ids(checkpoint, begin), model.eos_id()]
    for part in others:
        first, *rest = model.encode(part, out_type=str)
        pieces = [piece for piece in (first.removeprefix("▁"), *rest) if piece]
        ids += [*map(model.piece_to_id, pieces), model.eos_id()]
    return ids


def file(data: Path, name: str) -> bytes | Image.Image:
    path = data.parent / name
    return path.read_bytes() if path.suffix == ".mp4" else Image.open(path)


@torch.inference_mode()
def test_loss_and_labels_are_the_originals(checkpoint, data, original_base):
    """Text, pixels, ids, labels and logits, each made anew from the description."""
    original = OriginalVideoLlava.from_folder(checkpoint)
    losses = []
    for row, (text, media, answers) in enumerate(CONVERSATIONS):
        ids = original_ids(checkpoint, text)
        labels = reference_labels(ids, [reference_ids(checkpoint, answer)[1:] for answer in answers])
        ours = original_base.batch.labels[row]
        assert ours[ours != NOT_LEARNT].tolist() == [label for label in labels if label != NOT_LEARNT]
        embeddings = original._embed_prompt(ids, [rounded_pixels(original_base.maker, data, name) for name in media])
        labels = [NOT_LEARNT] * (len(embeddings) - len(ids)) + labels
        logprobs = original._llama(embeddings).log_softmax(-1)
        losses += [-logprobs[at - 1, label].item() for at, label in enumerate(labels) if label != NOT_LEARNT]
    assert original_base.model(original_base.batch).item() == pytest.approx(np.mean(losses), abs=1e-4)


def rounded_pixels(maker: BatchMaker, data: Path, name: str) -> torch.Tensor:
    """Return training's pixels of a file; they are the original's, but for rounding to 8 bits."""
    pixels = maker.decode("video" if name.endswith(".mp4") else "image", data.parent / name).float()
    assert (pixels - pixels_of(file(data, name)).clamp(0, 255)).abs().max() < 0.51
    return pixels


@torch.inference_mode()
def test_loss_is_that_of_transformers(transformers_checkpoint, data, transformers_base):
    model = VideoLlavaForConditionalGeneration.from_pretrained(transformers_checkpoint).eval()
    assert transformers_base.model(transformers_base.batch).item() == pytest.approx(
        transformers_loss(model, LlamaTokenizer.from_pretrained(transformers_checkpoint), data), abs=1e-4
    )


def transformers_loss(model, tokenizer, data: Path) -> float:
    patches = (IMAGE_SIZE // 14) ** 2
    losses = []
    for text, media, answers in CONVERSATIONS:
        for name in media:
            text = text.replace("<media>", "<image>" * patches if ".png" in name else "<video>" * (8 * patches + 8), 1)
        ids = tokenizer(text).input_ids
        labels = reference_labels(ids, [tokenizer(answer).input_ids[1:] for answer in answers])
        pixels = transformers_pixels([file(data, name) for name in media])
        logprobs = model(input_ids=torch.tensor([ids]), **pixels).logits[0].log_softmax(-1)
        losses += [-logprobs[at - 1, label].item() for at, label in enumerate(labels) if label != NOT_LEARNT]
    return float(np.mean(losses))


def transformers_pixels(media: list[bytes | Image.Image]) -> dict[str, torch.Tensor]:
    """Prepare images, and a video as eight images, which transformers treats alike."""
    size = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    processor = VideoLlavaImageProcessor(size={"shortest_edge": IMAGE_SIZE}, crop_size=size)
    inputs = {}
    for medium in media:
        if isinstance(medium, Image.Image):
            inputs["pixel_values_images"] = processor([medium], return_tensors="pt")["pixel_values_images"]
        else:
            frames = decode_all(medium)
            frames = [Image.fromarray(frames[index]) for index in np.linspace(0, len(frames) - 1, 8, dtype=int)]
            inputs["pixel_values_videos"] = processor(frames, return_tensors="pt")["pixel_values_images"][None]
    return inputs


def test_a_row_is_padded_as_if_it_were_alone(original_base):
    whole = original_base.model.hidden_states(original_base.batch)
    for row, entry in enumerate(original_base.entries):
        alone = original_base.maker.make([entry])
        length = alone.ids.shape[1]
        torch.testing.assert_close(
            original_base.model.hidden_states(alone)[0], whole[row, :length], atol=1e-4, rtol=1e-4
        )
        assert (original_base.batch.labels[row, length:] == NOT_LEARNT).all()


@pytest.fixture(scope="module", params=["original", "transformers"])
def tuned(request, checkpoint, transformers_checkpoint, data, tmp_path_factory) -> tuple[Path, Path, list[float]]:
    """A base, a fine-tune of it, and the losses of its steps."""
    base = checkpoint if request.param == "original" else transformers_checkpoint
    output = tmp_path_factory.mktemp("tuned") / "lora"
    return base, output, finetune(arguments(base, data, output, "--epochs", "8"))


def test_the_loss_falls(tuned):
    _, _, losses = tuned
    assert len(losses) == 16
    assert np.mean(losses[-4:]) < 0.7 * np.mean(losses[:4])


def test_the_folder_is_as_the_originals(tuned):
    base, output, _ = tuned
    assert {path.name for path in output.parent.iterdir()} == {"lora"}
    files = {"adapter_config.json", "adapter_model.safetensors", "non_lora_trainables.bin", "config.json"}
    assert {path.name for path in output.iterdir()} == files
    values, own = (json.loads((folder / "config.json").read_text()) for folder in (base, output))
    is_original = "mm_video_tower" in values
    level = "" if is_original else "language_model."
    adapter = load_file(output / "adapter_model.safetensors")
    assert set(adapter) == {
        f"base_model.model.model.{level}layers.{layer}.{name}.lora_{side}.weight"
        for layer in range(2)
        for name in LINEAR
        for side in "AB"
    }
    trainables = torch.load(output / "non_lora_trainables.bin", weights_only=True)
    projector, layers = ("mm_projector", "02") if is_original else ("multi_modal_projector", ("linear_1", "linear_2"))
    assert set(trainables) == {
        f"base_model.model.model.{projector}.{layer}.{part}" for layer in layers for part in ("weight", "bias")
    }
    assert {tensor.dtype for tensor in (*adapter.values(), *trainables.values())} == {torch.float32}
    assert own.pop("_name_or_path") == str(base)
    assert json.loads((output / "adapter_config.json").read_text())["base_model_name_or_path"] == str(base)
    values.pop("_name_or_path", None)
    assert own == values


def test_the_package_reads_the_folder(tuned):
    base, output, _ = tuned
    fine_tune = find_fine_tune(str(output), json.loads((output / "config.json").read_text()))
    assert fine_tune.kind == "adapter"
    assert fine_tune.files == ("adapter_model.safetensors", "non_lora_trainables.bin")
    assert fine_tune.base == str(base)
    assert (fine_tune.adapter.r, fine_tune.adapter.alpha) == (RANK, ALPHA)


@torch.inference_mode()
def test_the_merged_weights_answer_as_the_trained_ones(tuned, data, tmp_path):
    """The package's merging makes a model that has learnt the data."""
    base, output, _ = tuned
    merged = copy_checkpoint(base, tmp_path / "merged")
    adapter = find_fine_tune(str(output), json.loads((output / "config.json").read_text())).adapter
    own = {
        **load_file(output / "adapter_model.safetensors"),
        **torch.load(output / "non_lora_trainables.bin", weights_only=True),
    }
    weights = load_file(base / "model.safetensors")
    marked = [*own.items(), *((BASE + name, tensor) for name, tensor in weights.items())]
    tensors = dict(merge(marked, adapter))
    for name in weights:
        assert name in tensors or "projector" in name
        if "tower" in name or "embed_tokens" in name or "lm_head" in name:
            assert torch.equal(tensors[name], weights[name])
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, merged / "model.safetensors")
    after, before = (Base(folder, data) for folder in (merged, base))
    assert after.model(after.batch).item() < 0.8 * before.model(before.batch).item()
    if "mm_video_tower" not in json.loads((base / "config.json").read_text()):
        # transformers and PEFT themselves make the same of adapter and projector.
        model = PeftModel.from_pretrained(VideoLlavaForConditionalGeneration.from_pretrained(base), output).eval()
        projector = torch.load(output / "non_lora_trainables.bin", weights_only=True)
        assert not model.load_state_dict(projector, strict=False).unexpected_keys
        assert not [name for name, _ in model.named_parameters() if "tower" in name and "lora" in name]
        expected = transformers_loss(model, LlamaTokenizer.from_pretrained(base), data)
        assert after.model(after.batch).item() == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("change", ["bin in parts", "towers in their folders"])
def test_other_files_of_a_base(checkpoint, data, original_base, tmp_path, change):
    folder = copy_checkpoint(checkpoint, tmp_path / "base")
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    if change == "bin in parts":
        names = {name: f"pytorch_model-0000{1 + index % 2}-of-00002.bin" for index, name in enumerate(tensors)}
        for part in set(names.values()):
            torch.save({name: tensors[name] for name in names if names[name] == part}, folder / part)
        (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": names}))
    else:
        for kind, name in (("image", "LanguageBind_Image"), ("video", "LanguageBind_Video_merge")):
            prefix = f"model.{kind}_tower.{kind}_tower."
            own = {key: tensors.pop(key) for key in list(tensors) if key.startswith(prefix)}
            own = {key.replace(prefix, "vision_model."): tensor for key, tensor in own.items()}
            torch.save({**own, "logit_scale": torch.ones(())}, folder / name / "pytorch_model.bin")
        torch.save(tensors, folder / "pytorch_model.bin")
    other = Base(folder, data).model.state_dict()
    assert all(torch.equal(other[name], tensor) for name, tensor in original_base.model.state_dict().items())


def test_a_base_that_lacks_a_tensor_is_refused(checkpoint, data, tmp_path):
    folder = copy_checkpoint(checkpoint, tmp_path / "base")
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    torch.save(tensors, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"lacks tensors .*: language_model\.model\.layers\.1\.mlp\.up_proj\.weight\."):
        Base(folder, data)


def test_what_cannot_be_a_base_or_an_output(checkpoint, data, tmp_path):
    with pytest.raises(ValueError, match="exists already; choose another name"):
        finetune(arguments(checkpoint, data, tmp_path))
    with pytest.raises(ValueError, match=r"has no config\.json; it must be the folder or repository of a checkpoint"):
        finetune(arguments(tmp_path, data, tmp_path / "output"))


def test_the_learning_rate_rises_and_falls():
    factors = [learning_rate_factor(step, 100) for step in range(101)]
    assert factors[:3] == pytest.approx([1 / 3, 2 / 3, 1])
    assert factors[3] == 1
    assert all(np.diff(factors[3:]) < 0)
    assert factors[51] == pytest.approx(0.5, abs=0.02)
    assert factors[100] == pytest.approx(0, abs=1e-9)


def test_defaults_are_the_originals(checkpoint, data, tmp_path):
    words = f"--base {checkpoint} --data {data} --media-folder {data.parent} --output {tmp_path / 'output'}"
    args = parse_args(words.split())
    assert (args.rank, args.alpha, args.learning_rate, args.projector_learning_rate) == (128, 256, 2e-4, 2e-5)
    assert (args.epochs, args.batch_size) == (1, 16)


def test_only_the_adapter_and_the_projector_are_trained(checkpoint, data):
    model = Base(checkpoint, data).model
    adapter = model.add_adapter(RANK, ALPHA)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert all("lora_" in name or name.startswith("multi_modal_projector.") for name in trained)
    assert len(trained) == 2 * len(LINEAR) * 2 + 4
    assert adapter.peft_config["default"].lora_dropout == 0.05


def test_there_is_a_conversation_for_each_entry():
    assert len(CONVERSATIONS) == len(ENTRIES)


def test_what_was_learnt_is_kept_if_the_training_ends_early(checkpoint, data, tmp_path, monkeypatch):
    make = BatchMaker.make

    def make_two(self, entries):
        monkeypatch.setattr(BatchMaker, "made", getattr(BatchMaker, "made", 0) + 1, raising=False)
        if BatchMaker.made > 2:
            raise OSError("the disk with the media is gone")
        return make(self, entries)

    monkeypatch.setattr(BatchMaker, "make", make_two)
    with pytest.raises(OSError, match="is gone"):
        finetune(arguments(checkpoint, data, tmp_path / "lora", "--epochs", "8"))
    assert {path.name for path in tmp_path.iterdir()} == {"lora-after-2-steps"}
    kept = tmp_path / "lora-after-2-steps"
    assert find_fine_tune(str(kept), json.loads((kept / "config.json").read_text())).base == str(checkpoint)


def test_a_loss_that_is_not_finite_ends_the_training(checkpoint, data, tmp_path):
    with pytest.raises(FloatingPointError, match=r"The loss of step \d+ is (nan|inf); lower the learning rates\."):
        finetune(arguments(checkpoint, data, tmp_path / "lora", "--epochs", "8", "--learning-rate", "1e30"))


def test_a_relative_base_is_found_from_a_linked_output(checkpoint, data, tmp_path, monkeypatch):
    copy_checkpoint(checkpoint, tmp_path / "base")
    (tmp_path / "scratch" / "deep" / "runs").mkdir(parents=True)
    (tmp_path / "runs").symlink_to(tmp_path / "scratch" / "deep" / "runs")
    monkeypatch.chdir(tmp_path)
    finetune(arguments(Path("base"), data, Path("runs/lora")))
    base = json.loads(Path("runs/lora/adapter_config.json").read_text())["base_model_name_or_path"]
    assert base == "../../../../base"
    assert Path("runs/lora", base, "config.json").exists()


def test_tied_embeddings_are_loaded(checkpoint, data, tmp_path):
    folder = change_config(copy_checkpoint(checkpoint, tmp_path / "tied"), tie_word_embeddings=True)
    change_tensors(folder, lambda tensors: tensors.pop("lm_head.weight"))
    model = Base(folder, data).model.language_model
    assert model.lm_head.weight is model.get_input_embeddings().weight
    embeddings = load_file(folder / "model.safetensors")["model.embed_tokens.weight"]
    assert torch.equal(model.lm_head.weight, embeddings)
