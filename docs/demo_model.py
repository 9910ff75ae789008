"""Write docs/demo_model: the demo's student, its weights in two bytes each, and a CT to try it on.

make demo-model
"""

import json
import shutil
from pathlib import Path

from panorgan.nnunet.models.folders import CARD
from panorgan.nnunet.models.model import load_model, save_model
from panorgan.run.layout import Layout

REPOSITORY = Path(__file__).parents[1]
CASE = "test_1"
"""The CT is this one of the demo's, which no network has trained on."""
IMAGE = "phantom_0000.nii.gz"
MADE_BY = (
    "`make demo-model` in a checkout of panorgan: the student that `make demo` trains "
    f"(config/demo.yaml, stage2, seed 0), its weights rounded to fp16. {IMAGE} is the demo's case "
    f"{CASE}."
)


def write(source: Path, image: Path, out: Path) -> None:
    """Write the model of `source` and a CT into a folder; what is in it already is replaced."""
    model = load_model(source)
    shutil.rmtree(out, ignore_errors=True)
    # Of the weights as they are stored now the new card tells the checksum.
    card = {key: value for key, value in model.card.items() if key != "checksum"}
    card |= {"stored": "fp16", "made_by": MADE_BY}
    save_model(out, model.network.half(), model.plan, model.dataset_json, card)
    shutil.copyfile(image, out / IMAGE)
    print(f"{out}: {sum(path.stat().st_size for path in out.iterdir()):,} bytes")
    print(json.loads((out / CARD).read_text())["made_by"])


if __name__ == "__main__":
    write(
        REPOSITORY / Layout("demo").student_model("stage2", 0, 1),
        REPOSITORY / f"data/demo/imagesTs/{CASE}_0000.nii.gz",
        REPOSITORY / "docs/demo_model",
    )
