"""A Jupyter notebook that loads, generates, asks, compiles and trains runs from its first cell to its last."""

from textwrap import dedent

import pytest

from tiny import TINY_MODEL


nbclient = pytest.importorskip("nbclient")
nbformat = pytest.importorskip("nbformat")
pytest.importorskip("ipykernel")

# Each cell under the name by which the test below refers to its output.
CELLS = {
    "load": f"""
        import torch
        from janus_hf import JanusProPipeline
        pipe = JanusProPipeline.from_pretrained({TINY_MODEL!r}, dtype=torch.float32)
    """,
    "generate": """
        result = pipe("a red circle", generator=torch.Generator().manual_seed(0))
        result
    """,
    "show": "result.images[0]",
    "ask": 'pipe.ask(result.images[0], "What is in the image?", max_new_tokens=4)',
    "chat": """
        pipe.chat([{"role": "user", "content": "Say a word."}], max_new_tokens=4)
    """,
    # Jupyter interrupts a kernel in this way: the whole process group gets the signal.
    "interrupt": """
        import os, signal, threading
        threading.Timer(2, os.killpg, (os.getpgrp(), signal.SIGINT)).start()
        try:
            while pipe.enable_fast_decoding():
                pass
        except KeyboardInterrupt:
            print("interrupted")
    """,
    "generate after the interrupt": """
        again = pipe("a red circle", generator=torch.Generator().manual_seed(0))
        print(torch.equal(again.image_ids, result.image_ids))
    """,
    "compile": "pipe.enable_fast_decoding()",
    "generate compiled": """
        fast = pipe("a red circle", generator=torch.Generator().manual_seed(0))
        print(torch.equal(fast.image_ids, result.image_ids))
        pipe.disable_fast_decoding()
    """,
    "train": """
        from janus_hf.data import JanusProCollator, PackedDataset, make_plan, prepare_rows
        from janus_hf.training import JanusProSFTConfig, JanusProSFTTrainer
        rows = [{"prompt": "a red circle", "image": result.images[0]}] * 4
        prepared = {"drawing": prepare_rows(rows, pipe.model, pipe.processor)}
        plan = make_plan({"drawing": prepared["drawing"].lengths}, max_length=128, num_packs=4)
        trainer = JanusProSFTTrainer(
            pipe.model,
            JanusProSFTConfig(
                output_dir="trained", stage="full", max_steps=2, per_device_train_batch_size=1, max_length=128,
                logging_steps=1, save_strategy="no", report_to="none", use_cpu=True,
            ),
            train_dataset=PackedDataset(prepared, plan),
            data_collator=JanusProCollator(pipe.processor),
            processing_class=pipe.processor,
        )
        print(trainer.train().global_step)
    """,
}


@pytest.fixture(scope="module")
def outputs(tmp_path_factory):
    """Run the notebook and return the outputs of each cell by its name."""
    notebook = nbformat.v4.new_notebook(
        cells=[nbformat.v4.new_code_cell(dedent(cell).strip()) for cell in CELLS.values()]
    )
    folder = tmp_path_factory.mktemp("notebook")
    nbclient.NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(folder)}}).execute()
    return {name: cell.outputs for name, cell in zip(CELLS, notebook.cells, strict=True)}


def written(cell, *streams):
    """Return what a cell wrote to these streams, "stdout" or "stderr"."""
    return "".join(part.text for part in cell if part.output_type == "stream" and part.name in streams)


def printed(cell):
    """Return the last line that a cell printed to stdout."""
    return written(cell, "stdout").splitlines()[-1]


def shown_as(cell):
    """Return the kinds (MIME types) in which a cell's last value is displayed."""
    return set().union(*(part.data for part in cell if part.output_type in ("execute_result", "display_data")))


def check_display_of_a_result(cell):
    """Check how the output of the pipeline, which is the last value of a cell, is displayed."""
    assert "text/plain" in shown_as(cell)


@pytest.mark.slow
def test_values_are_displayed(outputs):
    check_display_of_a_result(outputs["generate"])
    assert "image/png" in shown_as(outputs["show"])
    for name in ("ask", "chat"):
        assert "text/plain" in shown_as(outputs[name])


@pytest.mark.slow
def test_an_interrupted_kernel_goes_on(outputs):
    assert printed(outputs["interrupt"]) == "interrupted"
    assert printed(outputs["generate after the interrupt"]) == "True"


@pytest.mark.slow
def test_compiled_images_are_the_same(outputs):
    assert printed(outputs["generate compiled"]) == "True"


@pytest.mark.slow
def test_training_runs(outputs):
    assert printed(outputs["train"]) == "2"


@pytest.mark.slow
def test_no_cell_warns_about_widgets(outputs):
    text = "".join(written(cell, "stdout", "stderr") for cell in outputs.values())
    assert "64/64" in text, "the bar of an image is text"
    assert "ipywidgets" not in text
    assert "IProgress" not in text
