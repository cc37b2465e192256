"""What it takes to use a model, beside its weights."""

import json
import re
from pathlib import Path
from typing import NamedTuple

from transformers.utils import cached_file

from detox_rl.embedded import EMBEDDED

FILE = "recipe.json"
SLOT = "{dialogue}"  # of a prompt's template

CARD = """---
library_name: peft
---
# A LoRA adapter that summarises dialogues

Made by detox_rl: `python -m detox_rl.summarize --model "FOLDER OF THIS FILE" chat.txt`. What it needs stands in
`recipe.json`. With plain PEFT:

```python
from peft import PeftModel
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

base = BASE
model = PeftModel.from_pretrained(AutoModelForSeq2SeqLM.from_pretrained(base), "FOLDER OF THIS FILE").eval()
tokenizer = AutoTokenizer.from_pretrained(base)
dialogue = "Tom: You left the bin open.\\nAnna: Sorry, I will close it."
inputs = tokenizer(PROMPT, return_tensors="pt")
print(tokenizer.decode(model.generate(**inputs, max_new_tokens=TOKENS)[0], skip_special_tokens=True))
```
"""


class Recipe(NamedTuple):
    """Stands as `recipe.json` in the folder of an adapter that this project wrote.

    Attributes:
        base_model: folder or hub id of the base, or `embedded`.
        base_fingerprint: of that base, by `model.t5.fingerprint`.
        prompt_template: what the model reads, with {dialogue} where the dialogue goes; None where training did not say.
        max_prompt_tokens: longer prompts lose the end of the dialogue.
        max_new_tokens: summaries are cut there.
    """

    base_model: str
    base_fingerprint: str
    prompt_template: str | None
    max_prompt_tokens: int | None
    max_new_tokens: int

    def write(self, folder: Path) -> None:
        """Puts it into an adapter's folder, and a README that says how to use the adapter."""
        text = json.dumps(self._asdict(), indent=2, ensure_ascii=False) + "\n"
        (folder / FILE).write_text(text, encoding="utf-8")
        (folder / "README.md").write_text(self.card(), encoding="utf-8")

    def card(self) -> str:
        """Markdown: the adapter with plain PEFT and transformers."""
        base = repr(self.base_model)
        if self.base_model == EMBEDDED:
            base = '"..."  # the folder that `python -m detox_rl.embedded` prints'
        prompt = "dialogue"
        if self.prompt_template is not None:
            prompt = f"{self.prompt_template!r}.replace({SLOT!r}, dialogue)"
        values = {"BASE": base, "PROMPT": prompt, "TOKENS": str(self.max_new_tokens)}
        # All at once: a value may hold these words too.
        return re.sub("|".join(values), lambda found: values[found[0]], CARD)


def holds(model: str, file: str) -> bool:
    """Whether a folder, or a hub id that can be reached, has a file."""
    try:
        return cached_file(model, file) is not None
    except OSError:
        return False


def read_recipe(model: str) -> Recipe | None:
    """The recipe of an adapter or a whole model (folder or hub id); None for one of other making.

    Raises:
        ValueError: if there is one that cannot be read.
    """
    try:
        path = cached_file(model, FILE)
    except OSError:
        return None
    try:
        return Recipe(**json.loads(Path(str(path)).read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path} is damaged: export it again, or delete that file.") from error
