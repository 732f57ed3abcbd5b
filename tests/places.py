"""Files that tests read: the checkout, its recipes, and data that lies beside it where it does."""

from pathlib import Path

ROOT = Path(__file__).parents[1]
RECIPES = ROOT / "examples" / "llm_finetune" / "deepseek_v4"
TINY = RECIPES / "deepseek_v4_tiny_hellaswag.yaml"
TINY_LORA = RECIPES / "deepseek_v4_tiny_lora.yaml"
FLASH = RECIPES / "deepseek_v4_flash_hellaswag.yaml"
FLASH_LORA = RECIPES / "deepseek_v4_flash_hellaswag_lora.yaml"

HELLASWAG = ROOT.parent / "shared" / "data" / "hellaswag"
"""The whole dataset; tests that need it are skipped without it."""
CHAT_ENCODING = ROOT.parent / "shared" / "reference" / "chat_encoding"
"""Golden cases of the chat format; tests that need them are skipped without them."""
