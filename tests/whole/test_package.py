"""The package as it is installed: light imports, no name taken from others, a wheel that works."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from helpers.paths import ROOT
from vllm_videollava import tiny_checkpoint

ENTRY_POINT = "vllm_videollava:register"


def run(code: str, **environment: str) -> str:
    output = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **environment},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert output.returncode == 0, output.stderr[-3000:]
    return output.stdout.strip().splitlines()[-1]


@pytest.mark.parametrize("module", ["torch", "vllm", "triton", "transformers"])
def test_importing_the_package_imports_nothing_heavy(module):
    assert run(f"import sys, vllm_videollava; print({module!r} in sys.modules)") == "False"


def test_registering_imports_neither_model_nor_decoder():
    code = (
        "import sys, vllm_videollava as package; package.register(); package.register()\n"
        "prefixes = 'vllm_videollava.model.', 'vllm_videollava.decoding.video', 'vllm_videollava.decoding.image'\n"
        "print([name for name in sys.modules if name.startswith(prefixes)])"
    )
    assert run(code) == "[]"


def test_vllm_finds_the_plugin():
    code = (
        "from importlib.metadata import entry_points\n"
        "print([point.value for point in entry_points(group='vllm.general_plugins') if point.name == 'video_llava'])"
    )
    assert run(code) == str([ENTRY_POINT])


def test_the_folder_kernels_hides_no_other_package(tmp_path):
    """With Hugging Face's `kernels` installed and the repository's root first on the path, theirs is imported."""
    other = tmp_path / "kernels"
    other.mkdir()
    (other / "__init__.py").write_text("whose = 'theirs'")
    code = "import kernels, vllm_videollava.kernels.frame_patch_embed as ours; print(kernels.whose, ours.__name__)"
    expected = "theirs vllm_videollava.kernels.frame_patch_embed"
    assert run(code, PYTHONPATH=f"{ROOT}:{tmp_path}") == expected
    assert not (ROOT / "kernels" / "__init__.py").exists()


@pytest.fixture(scope="module")
def installed_wheel(tmp_path_factory):
    """A folder into which the wheel is installed, without its dependencies."""
    dist, target = tmp_path_factory.mktemp("dist"), tmp_path_factory.mktemp("site")
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", dist, ROOT],
        check=True,
        capture_output=True,
    )
    (wheel,) = dist.glob("*.whl")
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", target, wheel]
    subprocess.run(install, check=True)
    return target


def test_the_wheel_has_the_tiny_checkpoint(installed_wheel):
    folders = (installed_wheel / "vllm_videollava" / "tiny" / "checkpoint", tiny_checkpoint())
    wheels, ours = (
        {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        for folder in folders
    )
    assert wheels == ours
    assert Path("model.safetensors") in ours


def test_the_wheel_answers_like_the_editable_install(installed_wheel, checkpoint, tmp_path):
    answers = [_answer(str(checkpoint), tmp_path, path) for path in (str(installed_wheel), str(ROOT))]
    assert [answer["from"] for answer in answers] == [str(installed_wheel), str(ROOT)]
    assert answers[0]["tokens"] == answers[1]["tokens"]


def _answer(checkpoint: str, folder, path: str) -> dict:
    script = folder / "answer.py"
    script.write_text(
        "import json, pathlib, sys, numpy, vllm_videollava\n"
        "from vllm import LLM, SamplingParams\n"
        "if __name__ == '__main__':\n"
        "    llm = LLM(sys.argv[1], dtype='float32', enforce_eager=True, max_model_len=512)\n"
        "    frames = numpy.arange(8 * 60 * 80 * 3, dtype=numpy.uint32).reshape(8, 60, 80, 3).astype(numpy.uint8)\n"
        "    media = {'video': frames}\n"
        "    prompt = {'prompt': 'USER: <video>\\nWhat? ASSISTANT:', 'multi_modal_data': media}\n"
        "    tokens = llm.generate(prompt, SamplingParams(temperature=0, max_tokens=8))[0].outputs[0].token_ids\n"
        "    source = pathlib.Path(vllm_videollava.__file__).parent.parent\n"
        "    print(json.dumps({'from': str(source), 'tokens': list(tokens)}))\n"
    )
    output = subprocess.run(
        [sys.executable, script, checkpoint],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert output.returncode == 0, output.stderr[-3000:]
    return json.loads(next(line for line in output.stdout.splitlines() if line.startswith('{"from"')))
