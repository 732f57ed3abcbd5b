"""The command `adapter export`: writes an adapter in the layout that an inference engine loads."""

from pathlib import Path
from shlex import quote

from seektune.io.console import counted, say
from seektune.lora.format import trained_on
from seektune.lora.vllm import VllmExport, export_for_vllm


def export_adapter(adapter: Path, destination: Path) -> VllmExport:
    """Export for vLLM, and print how to serve the result.

    Args:
        adapter: an adapter folder in PEFT's format, ours or another trainer's.
        destination: a new or empty folder.

    Raises:
        ValueError: the adapter is damaged, or vLLM would ignore or reject a part of it.
        OSError: reading or writing failed; nothing is left behind.
    """
    done = export_for_vllm(adapter, destination)
    if done.skipped:
        modules = counted(len(done.skipped), "module")
        say(f"note: {modules} of the MTP block left out: vLLM drafts with the base's, which only accepts fewer drafts")
    base, _ = trained_on(adapter)
    say(f"adapter: {destination} ({counted(done.modules, 'module')})")
    serve = f"vllm serve {quote(base or 'BASE')} --enable-lora --max-lora-rank {done.max_lora_rank}"
    say(f"serve it: {serve} --lora-modules {quote(f'{destination.resolve().name}={destination}')}")
    return done
