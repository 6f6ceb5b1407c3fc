"""Fine-tune a Video-LLaVA with LoRA, as the original's finetune_lora.sh does: LLaMA's layers and the whole projector.

    python -m training.finetune_lora --base CHECKPOINT --data data.json --media-folder FOLDER --output FOLDER

CHECKPOINT is a folder or repository with a whole model, in the original's format
or in that of transformers. The data are in the original's format; they are checked first,
and nothing is trained if anything is wrong with them. The towers stay as they are.
"""

import argparse
import math
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from peft import PeftModel
from torch import nn
from tqdm import tqdm

from training.batches import Batch, BatchMaker, prefetch
from training.data_files import Entry, read_entries
from training.lora_files import num_bytes, write_fine_tune
from training.trainable import TrainableVideoLlava, load_model, read_base_config
from vllm_videollava.conversion.folder import check_new, check_space, new_folder

WARMUP = 0.03
"""The share of all steps in which the learning rate rises."""


class Trainer:
    """Trains an adapter and the projector of one base.

    Attributes:
        losses: the loss of each step so far.

    Args:
        args: the command line's values.
        maker: makes the batches.
        model: the base, with its adapter.
    """

    def __init__(self, args: argparse.Namespace, maker: BatchMaker, model: TrainableVideoLlava) -> None:
        self.losses: list[float] = []
        self._args, self._maker, self._model = args, maker, model
        adapter = [value for value in model.language_model.parameters() if value.requires_grad]
        projector = list(model.multi_modal_projector.parameters())
        self._optimizer = torch.optim.AdamW(
            [
                {"params": adapter, "lr": args.learning_rate},
                {"params": projector, "lr": args.projector_learning_rate},
            ],
            weight_decay=0.0,
        )
        self._trained = [*adapter, *projector]

    def run(self, entries: Sequence[Entry]) -> None:
        """Train on all entries `--epochs` times, in random order.

        Raises:
            FloatingPointError: the loss is not finite.
        """
        groups = list(self._groups(entries))
        schedule = torch.optim.lr_scheduler.LambdaLR(
            self._optimizer, lambda step: learning_rate_factor(step, len(groups))
        )
        self._model.train()
        bar = tqdm(prefetch(self._maker, groups), "training", len(groups), smoothing=0.05)
        for batch in bar:
            self.losses.append(self._step(batch.to(self._model.device)))
            schedule.step()
            recent = self.losses[-20:]
            bar.set_postfix(loss=f"{sum(recent) / len(recent):.3f}", refresh=False)
        self._model.eval()

    def _groups(self, entries: Sequence[Entry]) -> Iterator[list[Entry]]:
        generator = torch.Generator().manual_seed(self._args.seed)
        for _ in range(self._args.epochs):
            order = torch.randperm(len(entries), generator=generator)
            for chosen in order.split(self._args.batch_size):
                yield [entries[index] for index in chosen]

    def _step(self, batch: Batch) -> float:
        device = self._model.device.type
        with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
            loss = self._model(batch)
        if not loss.isfinite():
            raise FloatingPointError(
                f"The loss of step {len(self.losses) + 1} is {loss.item()}; lower the learning rates."
            )
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self._trained, 1.0)
        self._optimizer.step()
        return loss.item()


def learning_rate_factor(step: int, steps: int) -> float:
    """Rise in a line, then fall along a cosine to 0."""
    warmup = math.ceil(WARMUP * steps)
    if step < warmup:
        return (step + 1) / warmup
    return (1 + math.cos(math.pi * (step - warmup) / max(steps - warmup, 1))) / 2


def check_data(args: argparse.Namespace, maker: BatchMaker) -> list[Entry]:
    """Read and check all data.

    Raises:
        SystemExit: something is wrong; each fault has been printed as a sentence.
    """
    entries, faults = read_entries(args.data, args.media_folder)
    faults += maker.find_faults(entries)
    if faults:
        print("\n".join(faults), file=sys.stderr)
        raise SystemExit(f"The data have {_count(len(faults), 'fault')}; nothing was trained.")
    return entries


def _count(number: int, one: str, several: str = "") -> str:
    return f"{number} {one if number == 1 else several or one + 's'}"


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", required=True, metavar="CHECKPOINT", help="folder or repository to fine-tune")
    parser.add_argument("--data", required=True, type=Path, nargs="+", metavar="FILE", help="JSON, one file or several")
    parser.add_argument(
        "--media-folder", required=True, type=Path, metavar="FOLDER", help="where paths in the data begin"
    )
    parser.add_argument("--output", required=True, type=Path, metavar="FOLDER", help="a folder that does not exist yet")
    parser.add_argument("--check-only", action="store_true", help="check the data, and train nothing")
    parser.add_argument("--rank", type=int, default=128, metavar="N", help="default: %(default)s")
    parser.add_argument("--alpha", type=int, default=256, metavar="N", help="the adapter counts alpha / rank times")
    parser.add_argument("--learning-rate", type=float, default=2e-4, metavar="X", help="default: %(default)s")
    parser.add_argument("--projector-learning-rate", type=float, default=2e-5, metavar="X", help="default: %(default)s")
    parser.add_argument("--epochs", type=int, default=1, metavar="N", help="default: %(default)s")
    parser.add_argument("--batch-size", type=int, default=16, metavar="N", help="default: %(default)s")
    parser.add_argument("--device", type=torch.device, default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    if min(args.rank, args.alpha, args.epochs, args.batch_size) < 1:
        parser.error("--rank, --alpha, --epochs and --batch-size must be at least 1.")
    return args


def finetune(args: argparse.Namespace) -> list[float]:
    """Check the data, train, and write the fine-tune's folder.

    If the training ends early, what has been learnt is written to a folder of another name.

    Returns:
        The loss of each step.

    Raises:
        ValueError: the base cannot be fine-tuned, or the output exists or has no room.
        SystemExit: something is wrong with the data.
    """
    check_new(args.output)
    config = read_base_config(args.base)
    maker = BatchMaker(args.base, config)
    entries = check_data(args, maker)
    if args.check_only:
        print(f"Nothing is wrong with the data, which have {_count(len(entries), 'entry', 'entries')}.")
        return []
    torch.manual_seed(args.seed)
    model = load_model(args.base, config, maker.tokenizer.placeholder_ids, args.device)
    adapter = model.add_adapter(args.rank, args.alpha)
    check_space(args.output, num_bytes(model))
    trainer = Trainer(args, maker, model)
    # The folder is made before the training, so that what forbids it shows at once.
    with new_folder(args.output) as folder:
        try:
            trainer.run(entries)
        except BaseException:
            if trainer.losses:
                _keep(args, model, adapter, len(trainer.losses))
            raise
        write_fine_tune(folder, args.output, args.base, model, adapter)
    losses = trainer.losses
    first, last = (sum(part) / len(part) for part in (losses[:20], losses[-20:]))
    print(f"The loss went from {first:.3f} to {last:.3f}; {args.output} has the fine-tune.")
    return losses


def _keep(args: argparse.Namespace, model: TrainableVideoLlava, adapter: PeftModel, steps: int) -> None:
    """Write what has been learnt so far."""
    output = args.output.with_name(f"{args.output.name}-after-{steps}-steps")
    with new_folder(output) as folder:
        write_fine_tune(folder, output, args.base, model, adapter)
    print(f"{output} has what was learnt until the training ended early.", file=sys.stderr)


def main() -> None:
    args = parse_args()
    try:
        finetune(args)
    except (ValueError, OSError, FloatingPointError) as error:
        raise SystemExit(str(error)) from error


if __name__ == "__main__":
    main()
