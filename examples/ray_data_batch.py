"""Ask about very many clips with Ray Data: several engines, on one machine or on a cluster.

    python examples/ray_data_batch.py CLIPS OUT --replicas 2 --question "What happens in this clip?"

CLIPS is a folder of clips, or a list of them: a text file with a clip in each
line, or a JSON lines or Parquet file with a column `clip`. A column `question`
replaces --question; a column `id` tells rows about the same clip apart; other
columns are copied. Folder, list, clips and OUT may each be in an object store
(s3://...); all clips of a list must be in the same one. Clips without a scheme
are relative to the folder or to the list.

OUT is a folder, to which every batch adds a file: Parquet if OUT ends in
.parquet, else JSON lines. A row has an `answer`, or else an `error`, which is a
sentence, if its clip cannot be read or decoded. Ray starts a replica that dies
anew and asks its batch again. You may interrupt the script, or lose the whole
cluster: run the same command again, and it asks only what is not in OUT yet.
OUT.progress keeps count; to start over, remove both.

Ray runs on this machine, or on the cluster that RAY_ADDRESS names, whose nodes
must all see the paths. Each replica takes a GPU, if there are any.
"""

import argparse
import os
import posixpath
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.json
import pyarrow.parquet as pq
import ray
from pyarrow.fs import FileSelector, FileSystem, FileType
from ray.data import ActorPoolStrategy, DataContext
from ray.data.checkpoint import CheckpointConfig
from ray.data.datasource import FilenameProvider
from ray.data.expressions import download

from vllm_videollava.client import messages
from vllm_videollava.commands.models import resolve

if TYPE_CHECKING:
    from vllm import LLM

SUFFIXES = (".avi", ".flv", ".gif", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".ts", ".webm", ".webp", ".wmv")
# Columns that are added to those of a list.
RESERVED = {"url", "bytes", "answer", "error"}


def main() -> None:
    args = parse_args()
    rows = list_rows(args.clips, args.question)
    if not ray.is_initialized():
        start_ray(args.replicas)
    context = DataContext.get_current()
    # Ray's newer way to read Parquet starts 32 processes even for a single short file.
    context.use_datasource_v2 = False
    # Ray commits a batch's answers together with the ids of its rows, and later leaves out rows with these ids.
    context.checkpoint_config = CheckpointConfig(
        id_column="id", checkpoint_path=f"{args.out}.progress/ids", delete_checkpoint_on_success=False
    )
    answers = answer(read_with_ray(rows, f"{args.out}.progress/rows"), args)
    try:
        if args.out.endswith(".parquet"):
            answers.write_parquet(args.out)
        else:
            answers.write_json(args.out, filename_provider=FilenameProvider(file_format="jsonl"), force_ascii=False)
    except KeyboardInterrupt:
        sys.exit("Interrupted; run the same command again for the rest.")
    print(f"All {len(rows)} rows are in {args.out}.")


def list_rows(source: str, question: str) -> pa.Table:
    """Return a row for each question: its `id`, `clip`, `url` and `question`, and what else a list has."""
    filesystem, path = FileSystem.from_uri(source)
    kind = filesystem.get_file_info(path).type
    if kind == FileType.NotFound:
        sys.exit(f"{source} does not exist.")
    if kind == FileType.Directory:
        folder, rows = source, pa.table({"clip": pa.array(find_clips(filesystem, path), pa.string())})
    else:
        folder, rows = posixpath.dirname(source), read_list(filesystem, path)
    if "clip" not in rows.column_names or not len(rows):
        sys.exit(f"{source} has no clips.")
    if taken := RESERVED & set(rows.column_names):
        sys.exit(f"{source} may not have columns called {' and '.join(sorted(taken))}.")
    columns = {name: rows[name] for name in rows.column_names}
    columns["question"] = pc.coalesce(columns.get("question", pa.nulls(len(rows), pa.string())), question)
    columns.setdefault("id", rows["clip"])
    if len(columns["id"].unique()) < len(rows):
        sys.exit(f"{source} has several rows with the same clip or id; give each row an id of its own.")
    urls = [clip if "://" in clip else posixpath.join(folder, clip) for clip in rows["clip"].to_pylist()]
    return pa.table({**columns, "url": urls})


def start_ray(num_replicas: int) -> None:
    """Join the cluster that RAY_ADDRESS names, or start Ray on this machine."""
    # Replicas hold processors all the time; with too few others, Ray could never run the steps before and after them.
    slots = num_replicas + max(4, os.cpu_count())
    ray.init(**({} if "RAY_ADDRESS" in os.environ else {"address": "local", "num_cpus": slots}))


def find_clips(filesystem: FileSystem, folder: str) -> list[str]:
    """Return the clips in a folder and its subfolders, as paths relative to the folder."""
    files = filesystem.get_file_info(FileSelector(folder, recursive=True))
    return sorted(
        posixpath.relpath(file.path, folder)
        for file in files
        if file.type == FileType.File and file.path.lower().endswith(SUFFIXES)
    )


def read_list(filesystem: FileSystem, path: str) -> pa.Table:
    with filesystem.open_input_file(path) as file:
        if path.endswith(".parquet"):
            return pq.read_table(file)
        if path.endswith((".jsonl", ".json")):
            return pyarrow.json.read_json(file)
        return pa.table({"clip": [line for line in file.read().decode().splitlines() if line]})


def read_with_ray(rows: pa.Table, folder: str) -> ray.data.Dataset:
    """Return the rows as read from a file, because only where Ray reads, it leaves out those that are answered."""
    filesystem, path = FileSystem.from_uri(folder)
    filesystem.create_dir(path)
    pq.write_table(rows, f"{path}/rows.parquet", filesystem=filesystem)
    return ray.data.read_parquet(folder)


def answer(rows: ray.data.Dataset, args: argparse.Namespace) -> ray.data.Dataset:
    """Download the clips and ask about them, batch by batch, each batch with the next replica that is free."""
    has_gpu = "GPU" in ray.cluster_resources()
    return (
        rows.repartition(target_num_rows_per_block=args.batch_size)
        .with_column("bytes", download("url"))
        .map_batches(
            Replica,
            fn_constructor_args=[args],
            batch_size=args.batch_size,
            batch_format="pyarrow",
            compute=ActorPoolStrategy(size=args.replicas),
            num_gpus=1 if has_gpu else 0,
            num_cpus=0 if has_gpu else 1,
        )
    )


class Replica:
    """An engine in a process of its own, which answers batches of rows."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.llm: LLM | None = None

    def __call__(self, batch: pa.Table) -> pa.Table:
        from vllm.v1.engine.exceptions import EngineDeadError

        # Not before the first batch, because there may be nothing left to ask.
        self.llm = self.llm or self.start_engine()
        try:
            results = dict(self.ask(batch.to_pylist()))
        except EngineDeadError:
            # Ray starts a process anew if it dies; after an exception, it would go on with an engine that is dead.
            os._exit(1)
        batch = batch.drop_columns(["url", "bytes"])
        for column in ("answer", "error"):
            texts = [results[index].get(column) for index in range(len(batch))]
            batch = batch.append_column(column, pa.array(texts, pa.string()))
        return batch

    def start_engine(self) -> "LLM":
        from vllm import LLM

        return LLM(
            resolve(self.args.model),
            dtype=self.args.dtype,
            max_model_len=self.args.max_model_len,
            enforce_eager=self.args.enforce_eager,
        )

    def ask(self, rows: list[dict[str, Any]]) -> Iterator[tuple[int, dict[str, str]]]:
        """Yield the index and the error of each row whose clip is unusable, then the answers to the others."""
        from vllm import SamplingParams

        from vllm_videollava.media.temporary_errors import TemporaryError

        params = SamplingParams(temperature=0, max_tokens=self.args.max_tokens)
        asked = []
        for index, row in enumerate(rows):
            if row["bytes"] is None:
                yield index, {"error": f"{row['url']} cannot be read."}
                continue
            video = messages.media_part("video", messages.data_url(row["bytes"], "video/mp4"))
            # Clips are added one by one, so that an error is about one clip; the engine still answers them together.
            try:
                self.llm.enqueue_chat(messages.question(row["question"], [video]), params, use_tqdm=False)
            except (ValueError, TemporaryError) as error:
                yield index, {"error": str(error)}
            else:
                asked.append(index)
        outputs = self.llm.wait_for_completion(use_tqdm=False)
        for index, output in zip(asked, outputs, strict=True):
            yield index, {"answer": output.outputs[0].text.strip()}


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clips", type=absolute, metavar="CLIPS")
    parser.add_argument("out", type=absolute, metavar="OUT")
    parser.add_argument("--model", default="LanguageBind/Video-LLaVA-7B", help="folder, repository or tiny")
    parser.add_argument("--question", default="What happens in this clip?")
    parser.add_argument("--replicas", type=int, default=1, metavar="N", help="number of engines")
    parser.add_argument("--batch-size", type=int, default=64, metavar="N", help="clips that a replica is given at once")
    parser.add_argument("--max-tokens", type=int, default=256, metavar="N", help="maximum tokens of an answer")
    parser.add_argument("--dtype", default="auto", help="type of weights and activations, such as float32")
    parser.add_argument("--max-model-len", type=int, metavar="N", help="maximum tokens of prompt and answer")
    parser.add_argument("--enforce-eager", action="store_true", help="start faster but answer more slowly")
    return parser.parse_args()


def absolute(path: str) -> str:
    """Return a local path as seen from any folder, and a URL as it is."""
    return path.rstrip("/") if "://" in path else os.path.abspath(path)


if __name__ == "__main__":
    main()
