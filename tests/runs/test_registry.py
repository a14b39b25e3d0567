from __future__ import annotations

import dataclasses
import inspect
import json
import sys
from importlib import metadata
from pathlib import Path
from typing import get_type_hints

import pytest

from metarl.cli.main import main
from metarl.core.config import EvaluationConfig, TrainerConfig
from metarl.core.errors import InputError, warn_once
from metarl.core.learner import Actor, Learner
from metarl.core.settings import convert
from metarl.core.tasks import TaskDistribution
from metarl.rl.tasks import EnvTaskDistribution
from metarl.runs import registry

MODULE = '''
from metarl.core.learner import Traits
from metarl.core.tasks import TaskDistribution
from metarl.rl.tasks import EnvTaskDistribution
from dataclasses import dataclass

class Whole(EnvTaskDistribution):
    """A whole family.

    With more words.
    """
    def sample(self, num_tasks, rng, *, split="train"):
        return []
    def make_vector_env(self, num_envs, *, num_threads):
        return None

class Supervised(TaskDistribution):
    def sample(self, num_tasks, rng, *, split="train"):
        return []

class NoSample(EnvTaskDistribution):
    def make_vector_env(self, num_envs, *, num_threads):
        return None

class NoSetTask(Whole):
    make_vector_env = EnvTaskDistribution.make_vector_env
    def make_env(self):
        return None

class Foreign:
    def sample(self): ...

class Agent:
    @dataclass
    class Config: ...
    traits = Traits(unit="gradient steps")
    begin = prepare = adapt = score = meta_update = state_dict = load_state_dict = to = act = observe = print

class Deaf(Agent):
    observe = None
    Config = dict
    traits = None

class Unscalable(Agent):
    traits = Traits(unit="gradient steps", step_size_can_scale=True)

def function(): ...
'''


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "registry_family.py").write_text(MODULE)
    (tmp_path / "registry_broken.py").write_text("import a_module_that_is_not_there\n")
    (tmp_path / "registry_syntax.py").write_text("def (\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "registry_family", raising=False)
    return "registry_family"


def message(function: object, *args: object) -> str:
    with pytest.raises(InputError) as caught:
        function(*args)  # type: ignore[operator]
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_the_protocols_methods_are_what_learners_are_checked_for() -> None:
    def methods(protocol: type) -> set[str]:
        return {name for name, value in vars(protocol).items() if inspect.isfunction(value) and name[0] != "_"}

    assert set(registry.LEARNER_METHODS) == methods(Learner)
    assert set(registry.ACTING_METHODS) == methods(Learner) | methods(Actor)


def test_a_dotted_name_loads(module: str) -> None:
    assert issubclass(registry.load_task(f"{module}:Whole"), EnvTaskDistribution)
    assert issubclass(registry.load_task(f"{module}:Supervised"), TaskDistribution)
    assert registry.load_agent(f"{module}:Agent").__name__ == "Agent"


def test_unknown_names_list_the_nearest_and_the_form() -> None:
    assert "did you mean 'half-cheetah-dir'" in message(registry.load_task, "half-cheeta-dir")
    for name in ("mypkg", "mypkg.tasks", ":Whole", "mypkg:"):
        assert "module:Class" in message(registry.load_task, name)
    assert "did you mean 'maml'" in message(registry.load_agent, "mamll")


def test_the_modules_own_error_is_shown(module: str) -> None:
    with pytest.raises(InputError, match="No module named 'a_module_that_is_not_there'") as caught:
        registry.load_task("registry_broken:Whole")
    assert isinstance(caught.value.__cause__, ModuleNotFoundError)
    assert "SyntaxError" in message(registry.load_task, "registry_syntax:Whole")


def test_a_missing_attribute_lists_public_names(module: str) -> None:
    assert "did you mean 'Whole'" in message(registry.load_task, f"{module}:Whol")
    listed = message(registry.load_task, f"{module}:qqqq")
    assert "Foreign" in listed
    assert "function" in listed


@pytest.mark.parametrize(
    ("name", "missing"),
    [
        ("NoSample", "NoSample lacks sample"),
        ("NoSetTask", "make_env (with set_task) or make_vector_env"),
        ("Foreign", "missing: all_tasks"),
        ("function", "function function does not derive from metarl.TaskDistribution"),
    ],
)
def test_a_class_that_is_no_task_distribution_is_told_what_it_lacks(module: str, name: str, missing: str) -> None:
    assert missing in message(registry.load_task, f"{module}:{name}")


def test_a_class_that_is_no_agent_is_told_what_it_lacks(module: str) -> None:
    assert message(registry.load_agent, f"{module}:Deaf").endswith(
        "Deaf lacks observe, Config (a dataclass), traits (a metarl.Traits)"
    )
    assert message(registry.load_agent, f"{module}:Unscalable").endswith("Unscalable lacks with_step_scale")
    assert "is not a class" in message(registry.load_agent, f"{module}:function")


def test_the_kind_of_the_task_decides_where_an_agent_is_looked_up(module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(registry.AGENTS, "actor", f"{module}:Agent")
    monkeypatch.setitem(registry.LEARNERS, "proto", f"{module}:Agent")
    acting, supervised = registry.load_task(f"{module}:Whole"), registry.load_task(f"{module}:Supervised")
    assert registry.load_agent_for(acting, "whole", "actor").__name__ == "Agent"
    assert registry.load_agent_for(supervised, "supervised", "proto").__name__ == "Agent"
    assert "is a few-shot learner, but whole needs an RL agent" in message(
        registry.load_agent_for, acting, "whole", "proto"
    )
    assert "is an RL agent, but supervised needs a few-shot learner" in message(
        registry.load_agent_for, supervised, "supervised", "actor"
    )


def test_installed_packages_add_names_but_cannot_take_built_in_ones(
    module: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def entry_points(*, group: str) -> list[metadata.EntryPoint]:
        found = {"installed": f"{module}:Whole", "bandit": f"{module}:Whole"} if group == "metarl.tasks" else {}
        return [metadata.EntryPoint(name, value, group) for name, value in found.items()]

    monkeypatch.setattr(metadata, "entry_points", entry_points)
    assert registry.load_task("installed").__name__ == "Whole"
    assert registry.names("task")["bandit"] == registry.TASKS["bandit"]
    assert "installed" in [entry["name"] for entry in registry.entries()["tasks"]]


def test_an_installed_distribution_is_listed_and_loads(
    module: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path])  # the command line adds the working directory
    added = {"tasks": ("my-family", "Whole"), "agents": ("my-agent", "Agent"), "learners": ("my-learner", "Agent")}
    groups = [f"[metarl.{kind}]\n{name} = {module}:{value}\n" for kind, (name, value) in added.items()]
    installed = tmp_path / "my_package-1.0.dist-info"
    installed.mkdir()
    (installed / "METADATA").write_text("Metadata-Version: 2.1\nName: my-package\nVersion: 1.0\n")
    (installed / "entry_points.txt").write_text("\n".join(groups))
    assert registry.load_task("my-family").__name__ == "Whole"
    assert registry.load_agent("my-agent").__name__ == registry.load_learner("my-learner").__name__ == "Agent"
    assert main(["list", "--json"]) == 0
    entries = json.loads(capsys.readouterr().out)
    found = {kind: row["name"] for kind, rows in entries.items() for row in rows if row["module"] == module}
    assert found == {kind: name for kind, (name, _) in added.items()}
    assert main(["list"]) == 0
    listed = capsys.readouterr().out.split("agents:\n")
    assert "  my-family            A whole family.\n" in listed[0]
    assert "  my-agent " in listed[1].split("learners:\n")[0]
    assert "  my-learner " in listed[1].split("learners:\n")[1]


ODD_MODULE = """
import sys
print("hello")
class Meta(type):
    @property
    def __doc__(cls): raise ValueError("no doc")
    def __repr__(cls): raise ValueError("no repr")
class NoDoc(metaclass=Meta): pass
class Outer:
    class Inner:
        "Red \x1b[31m text."
nothing = None
def __getattr__(name):
    if name == "lazy":
        raise RuntimeError("not today")
    raise AttributeError(name)
"""


def install(folder: Path, name: str, entry_points: bytes) -> None:
    info = folder / f"{name}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_bytes(entry_points)


BROKEN = {
    "no-import": ("registry_broken:Whole", "cannot import registry_broken: ModuleNotFoundError"),
    "no-syntax": ("registry_syntax:Whole", "cannot import registry_syntax: SyntaxError"),
    "leaves": ("registry_exit:Whole", "cannot import registry_exit: SystemExit: 0"),
    "strange": ("registry_strange:Whole", "cannot import registry_strange: Strange: odd"),
    "missing": ("registry_odd:Nothing", "attribute of registry_odd = 'Nothing': unknown"),
    "lazy": ("registry_odd:lazy", "registry_odd:lazy raised RuntimeError: not today"),
    "nothing": ("registry_odd:nothing", "NoneType None is not a class"),
    "whole-module": ("registry_odd", "its entry point is 'registry_odd': must be module:Class"),
    "empty": ("", "its entry point is '': must be module:Class"),
    "no-doc": ("registry_odd:NoDoc", "its docstring raised ValueError: no doc"),
}


def test_broken_packages_are_named_and_break_nothing_else(
    module: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "registry_exit.py").write_text("import sys\nsys.exit(0)\n")
    (tmp_path / "registry_strange.py").write_text("class Strange(BaseException): ...\nraise Strange('odd')\n")
    (tmp_path / "registry_odd.py").write_text(ODD_MODULE)
    fine = {"nested": "registry_odd:Outer.Inner", "extra": f"{module}:Whole [more]", "point-nav": "registry_exit:Whole"}
    values = {name: value for name, (value, _) in BROKEN.items()} | fine
    lines = "".join(f"{name} = {value}\n" for name, value in values.items())
    install(tmp_path, "registry-odd", f"[metarl.tasks]\n{lines}[metarl.agents]\n{lines}".encode())
    assert main(["list", "--json"]) == 0
    entries = json.loads(capsys.readouterr().out)  # what packages print on import is not in it
    for kind in ("tasks", "agents"):
        rows = {row["name"]: row for row in entries[kind]}
        for name, (_, problem) in BROKEN.items():
            assert problem in rows[name]["error"]
            assert "\n" not in rows[name]["error"]
        assert rows["nested"]["summary"] == r"Red \x1b[31m text."
        assert rows["extra"]["summary"] == "A whole family."
    assert main(["list"]) == 0
    for name in BROKEN:
        assert message(registry.load_task, name)
        assert message(registry.load_agent, name)
    assert registry.load_task("extra").__name__ == "Whole"
    assert registry.load_task("point-nav").__name__ == "PointNav"


@pytest.mark.parametrize("damaged", [b"[metarl.tasks]\n\xff = a:B\n", b"[metarl.tasks]\njust-a-name\n"])
def test_a_package_with_damaged_entry_points_is_left_out(
    damaged: bytes, module: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    warn_once.cache_clear()
    install(tmp_path, "damaged", damaged)
    install(tmp_path, "intact", f"[metarl.tasks]\nintact = {module}:Whole\n".encode())
    assert registry.load_task("intact").__name__ == "Whole"
    assert registry.load_task("bandit").__name__ == "Bandit"
    (warning,) = caplog.messages
    assert warning.startswith("damaged: its entry points cannot be read: ")


def test_presets_are_listed_default_first_and_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "presets" / "point-nav"
    folder.mkdir(parents=True)
    for name in ("maml.paper", "maml", "maml.a", "other.quick"):
        (folder / f"{name}.toml").write_text(f'[agent]\nfile = "{name}"\n')
    monkeypatch.setattr(registry.resources, "files", lambda package: tmp_path)
    assert registry.presets("point-nav", "maml") == ["default", "a", "paper"]
    assert registry.presets("point-nav", "absent") == []
    assert registry.presets("../presets", "maml") == []
    assert registry.preset_table("point-nav", "maml", "default") == {"agent": {"file": "maml"}}
    assert registry.preset_table("point-nav", "maml", "paper") == {"agent": {"file": "maml.paper"}}
    assert registry.preset_table("point-nav", "absent", "default") == {}
    assert "known: a, default, paper" in message(registry.preset_table, "point-nav", "maml", "nonsense")


def test_entries_describe_and_survive_what_cannot_be_imported(module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "TASKS", {"whole": f"{module}:Whole", "broken": "registry_broken:Whole"})
    monkeypatch.setattr(
        metadata, "entry_points", lambda *, group: []
    )  # this machine may have packages with entry points
    broken, whole = registry.entries()["tasks"]
    assert whole == {"name": "whole", "summary": "A whole family.", "module": module, "presets": {}}
    assert broken["summary"] == ""
    assert "a_module_that_is_not_there" in broken["error"]


def test_every_built_in_name_loads_and_its_defaults_are_allowed() -> None:
    """Defaults are not checked when settings are made."""
    tasks = [registry.load_task(name) for name in registry.TASKS]
    agents = [registry.load_agent(name) for name in registry.AGENTS]
    learners = [registry.load_learner(name) for name in registry.LEARNERS]
    for kind in [*tasks, TrainerConfig, EvaluationConfig, *(learner.Config for learner in (*agents, *learners))]:
        hints = get_type_hints(kind, include_extras=True)
        for field in dataclasses.fields(kind):  # type: ignore[arg-type]
            if field.default is not dataclasses.MISSING:
                convert(field.default, hints[field.name], f"{kind.__name__}.{field.name}")
