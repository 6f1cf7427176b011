"""The official judge of DPG-Bench: mPLUG, a model for visual question answering, run in a separate Python environment.

mPLUG is available only in modelscope, whose old dependencies conflict with those of this package.
"""

import json
import os
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

from PIL import Image


# Program that the other interpreter runs: it reads one JSON request per line and writes one JSON reply per line.
# modelscope prints to standard output, so replies are written to a duplicate of standard output, and everything
# printed is redirected to standard error.
WORKER = """
import json, os, sys
answers = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)
from PIL import Image
from modelscope.pipelines import pipeline
from modelscope.utils.constant import Tasks
answer = pipeline(Tasks.visual_question_answering, model=sys.argv[1], device=sys.argv[2])
for line in sys.stdin:
    request = json.loads(line)
    try:
        image = Image.open(request["image"])
        reply = {"answers": [answer({"image": image, "question": q})["text"] for q in request["questions"]]}
    except Exception as error:
        reply = {"error": repr(error)}
    answers.write(json.dumps(reply) + chr(10))
    answers.flush()
"""


class MplugJudge:
    """The official judge of DPG-Bench, which answers questions about images: modelscope's mPLUG-large.

    Another Python interpreter runs it. `requirements.txt` of TencentQQGYLab/ELLA lists the packages that must be
    installed there: modelscope, fairseq, librosa==0.10.1, rouge_score<=0.0.4 and others.

    The judge is a context manager. It starts the other interpreter at the first question, and ends it when the `with`
    block is left.

    Args:
        python: Path of the other Python interpreter.
        model: Name of the model on modelscope.
        device: Device in modelscope's notation: "gpu", "gpu:0" or "cpu".
    """

    name = "mplug"

    def __init__(
        self,
        python: str | os.PathLike[str],
        *,
        model: str = "damo/mplug_visual-question-answering_coco_large_en",
        device: str = "gpu",
    ) -> None:
        self.command = [os.fspath(python), "-c", WORKER, model, device]
        # The process of the other interpreter, or None while none runs.
        self.process: subprocess.Popen[str] | None = None

    def __call__(self, image: Image.Image, questions: Sequence[str]) -> list[str]:
        """Return mPLUG's answer to each question about the image, unchanged.

        Raises:
            FileNotFoundError: If the other Python interpreter does not exist.
            ChildProcessError: If the other interpreter ended unexpectedly; its own message is on standard error.
            ValueError: If mPLUG failed on this image.
        """
        if self.process is None:
            self.process = subprocess.Popen(
                self.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, encoding="utf-8"
            )
        line = self._request(self.process, image, questions)
        if not line:
            status = self.process.wait()
            self.process = None
            raise ChildProcessError(
                f"mPLUG must answer every request, but {self.command[0]} ended with status {status}: read its message "
                "above and check that modelscope and the rest of ELLA's requirements.txt are installed there."
            )
        reply = json.loads(line)
        if "error" in reply:
            raise ValueError(f"mPLUG failed: {reply['error']}")
        return list(reply["answers"])

    @staticmethod
    def _request(process: subprocess.Popen[str], image: Image.Image, questions: Sequence[str]) -> str:
        """Send an image and questions to the process; return its reply, a line of JSON, or "" if it has ended."""
        assert process.stdin is not None
        assert process.stdout is not None
        with tempfile.TemporaryDirectory() as folder:
            path = str(Path(folder) / "image.png")
            image.save(path)
            try:
                process.stdin.write(json.dumps({"image": path, "questions": list(questions)}) + "\n")
                process.stdin.flush()
                return process.stdout.readline()
            except BrokenPipeError:
                return ""

    def close(self) -> None:
        """End the other Python interpreter if it is running."""
        if self.process is not None:
            process, self.process = self.process, None
            # `communicate` closes the process's standard input, which ends its loop, and waits for its end.
            process.communicate()

    def __enter__(self) -> "MplugJudge":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


__all__ = ["MplugJudge"]
