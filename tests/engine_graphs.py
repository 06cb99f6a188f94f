"""Graphs that engines are built from, made once for each state of the code that makes them; and their builds."""

from pathlib import Path

from checkpoints import CACHE, ROOT, key, publish

from safelight.export.engines.builder import PlanTask
from safelight.export.engines.graph import make_graph, wanted_dtype
from safelight.export.engines.pictures import Pictures
from safelight.export.engines.shapes import profiles_of
from safelight.runtime.model_folder import open_model_folder

FLAVOUR = "tensorrt-rtx"
#: the networks of the bundled model, and of tiny checkpoints of `checkpoints`
NETWORKS = {
    "EMOJI": ("text_encoder", "unet", "vae_decoder", "vae_encoder"),
    "SD2": ("text_encoder", "unet", "vae_decoder", "vae_encoder"),
    "SDXL": ("text_encoder", "text_encoder_2", "unet", "vae_decoder", "vae_encoder"),
    "INPAINTING": ("text_encoder", "unet", "vae_decoder", "vae_encoder"),
}
CASES = [(model, network) for model, networks in NETWORKS.items() for network in networks]


def silent(_: str) -> None:
    """Tells nobody."""


def graph_of(folder: Path, network: str, dtype: str) -> Path:
    """The graph that `safelight build` makes an engine of."""
    code = [path for path in (ROOT / "export").rglob("*.py") if path.parent.name != "engines"]
    code += [ROOT / "export" / "engines" / name for name in ("graph.py", "retrace.py")]
    code += [*(ROOT / "reference").glob("*.py"), folder / "safelight.json"]
    scratch = CACHE / "engine-graphs" / f"{folder.name}-{network}-{key([dtype], code)}"

    def write(target: Path) -> None:
        graph = make_graph(folder, network, dtype, target, progress=silent)
        where = graph.relative_to(target) if graph.is_relative_to(target) else graph
        (target / "path").write_text(str(where))

    publish(scratch, write)
    return scratch / (scratch / "path").read_text()


def task_of(
    folder: Path, network: str, plan: Path, *, dtype: str = "fp16", vae_dtype: str = "fp32", gpu: str = "sm89"
) -> PlanTask:
    """The build of an engine of a network of a folder, for the model's own pictures and one GPU."""
    model = open_model_folder(folder)
    assert model.manifest is not None
    record = model.manifest.components[network]
    wanted = wanted_dtype(model.manifest, network, dtype=dtype, vae_dtype=vae_dtype)
    return PlanTask(
        flavour=FLAVOUR,
        network=network,
        graph=graph_of(folder, network, wanted),
        plan=plan,
        profiles=profiles_of(model, network, Pictures()),
        inputs=tuple(record.inputs),
        outputs=tuple(record.outputs),
        gpus=(gpu,),
    )
