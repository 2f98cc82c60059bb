"""Import and export through the command line: whole runs from foreign files, and back, or one sentence and no trace."""

from __future__ import annotations

import json
import re
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml

from engine.debates.stage import recorded
from engine.live.progress import Progress
from engine.record.folder import Manifest, RunFolder
from engine.record.journal import CloseEntry, EventEntry, Journal
from engine.results.transfer_out import FILES, FOLDERS
from engine.transfer import READERS, import_run
from protocols.graph import Debate, encode_debate
from protocols.machine import Opened
from protocols.message import Ask
from protocols.task import Task
from tests.engine.command import done, moot, refused
from tests.fakes import play
from tests.protocols.formats import samples
from tests.protocols.test_society import society


def written(path: Path, value: Any) -> Path:
    path.write_text(value if isinstance(value, str) else samples.dumped(value), encoding="utf-8")
    return path


def debates(run: Path) -> list[Debate]:
    return [closed.debate for closed in recorded(RunFolder.open(run), "debate")]


ALL = {
    "mad": ("7.json", samples.published_mad()),
    "maft": ("gen.json", samples.maft()),
    "mag": ("mag.jsonl", samples.dumped(samples.mag_row()) + "\n"),
    "magdi": ("magdi.json", samples.magdi()),
    "m2d": ("m2d.json", samples.m2d()),
    "llava": ("llava.json", samples.llava()),
}


@pytest.mark.parametrize("form", ALL)
def test_what_is_imported_can_be_reported_and_exported_again(form: str, tmp_path: Path) -> None:
    name, value = ALL[form]
    run = tmp_path / "run"
    outcome = done("import", form, written(tmp_path / name, value), "--run-dir", run)
    assert outcome["run"] == str(run) and outcome["debates"] == len(debates(run))
    assert RunFolder.open(run).manifest.kind == "import"
    assert done("report", run)["report"] == str(run / "report.html")
    assert "<script>" not in (run / "report.html").read_text(encoding="utf-8")
    assert done("export", form, run, "-o", tmp_path / f"out-{name}")["debates"] == outcome["debates"]
    again = tmp_path / "again"
    done("import", form, tmp_path / f"out-{name}", "--run-dir", again)
    one, two = debates(run), debates(again)
    if form == "mad":  # a log's name is kept, and this one has another
        one, two = ([msgspec.structs.replace(d, task=without_name(d.task)) for d in found] for found in (one, two))
    assert one == two


def without_name(task: Task) -> Task:
    return msgspec.structs.replace(task, details={key: value for key, value in task.details.items() if key != "file"})


def test_an_import_is_done_and_has_no_agents(tmp_path: Path) -> None:
    run = tmp_path / "run"
    done("import", "llava", written(tmp_path / "l.json", samples.llava()), "--run-dir", run)
    resumed = moot("resume", run, "--json")
    assert resumed.exit_code == 0 and "is an import; nothing to resume" in resumed.stderr
    assert "it has no agents to evaluate" in refused("eval", run)
    assert "import  done" in moot("list", "--runs-dir", tmp_path).stdout


def test_an_import_can_be_learned_from(tmp_path: Path) -> None:
    done("import", "llava", written(tmp_path / "l.json", samples.llava()[:1]), "--run-dir", tmp_path / "run")
    assert done("export", "trl-sft", tmp_path / "run", "-o", tmp_path / "sft.jsonl")["rows"] == 1
    assert json.loads((tmp_path / "sft.jsonl").read_text(encoding="utf-8")) == {
        "prompt": [{"role": "user", "content": "<image>\nWhat is it?"}],
        "completion": [{"role": "assistant", "content": "1. fur\nFinal Answer: [a dog]"}],
    }


def test_a_folder_of_logs_keeps_their_names_and_order(tmp_path: Path) -> None:
    logs = tmp_path / "logs"
    logs.mkdir()
    for number in (10, 9, 2):
        written(logs / f"{number}.json", samples.published_mad() | {"source": f"text {number}"})
    done("import", "mad", logs, "--run-dir", tmp_path / "run")
    assert [debate.task.question for debate in debates(tmp_path / "run")] == ["text 2", "text 9", "text 10"]
    done("export", "mad", tmp_path / "run", "-o", tmp_path / "out")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"2.json", "9.json", "10.json"}
    assert json.loads((tmp_path / "out" / "9.json").read_text()) == json.loads((logs / "9.json").read_text())


def test_the_same_question_twice_stays_two(tmp_path: Path) -> None:
    one, two = (written(tmp_path / f"{name}.json", samples.maft()) for name in "ab")
    assert done("import", "maft", one, two, "--run-dir", tmp_path / "run")["debates"] == 6
    found = debates(tmp_path / "run")
    assert len({debate.id for debate in found}) == 6
    assert found[3].id == f"{found[0].id}-2" and found[3].utterances[0].reply.ask_id == f"{found[3].id}#0.answer.0"
    done("export", "maft", tmp_path / "run", "-o", tmp_path / "out.json")
    assert len(json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))) == 6


BROKEN = {
    "not JSON": ("mad", "{", "f.json: is not valid JSON"),
    "endless lists": ("llava", "[" * 100_000, "f.json: is JSON that cannot be read"),
    "deep lists": ("llava", "[" * 90 + "]" * 90, "f.json: is JSON that cannot be read: it nests deeper than 64 levels"),
    "half a character": ("llava", '["\\ud800"]', "f.json: holds an escape that is half a character"),
    "another format": ("mad", samples.magdi(), "f.json: must be an object"),
    "nothing in it": ("llava", [], "there is no debate in what is to be imported"),
    "a bad second item": ("llava", [*samples.llava(), {"id": 1}], "f.json, item 3: has no 'conversations'"),
    "an unknown format": ("word", {}, "cannot import 'word'; use one of: mad, maft, mag, magdi, m2d, llava"),
}


@pytest.mark.parametrize("mistake", BROKEN)
def test_a_broken_file_is_one_sentence_and_leaves_nothing(mistake: str, tmp_path: Path) -> None:
    form, value, said = BROKEN[mistake]
    file = written(tmp_path / "f.json", value)
    assert said in refused("import", form, file, "--run-dir", tmp_path / "new" / "run")
    assert list(tmp_path.iterdir()) == [file]


def test_bytes_that_are_no_text_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "f.jsonl"
    file.write_bytes(samples.dumped(samples.mag_row()).encode() + b"\n\xff\n")
    assert "f.jsonl, line 2: is not UTF-8" in refused("import", "mag", file, "--run-dir", tmp_path / "run")
    assert list(tmp_path.iterdir()) == [file]


def test_an_import_makes_a_folder_of_its_own(tmp_path: Path) -> None:
    file = written(tmp_path / "l.json", samples.llava())
    done("import", "llava", file, "--run-dir", tmp_path / "run")
    before = (tmp_path / "run" / "run.json").read_bytes()
    assert "is there already" in refused("import", "llava", file, "--run-dir", tmp_path / "run")
    assert (tmp_path / "run" / "run.json").read_bytes() == before
    assert "No such file" in refused("import", "llava", tmp_path / "none.json", "--run-dir", tmp_path / "other")


def test_many_debates_are_committed_in_batches(tmp_path: Path) -> None:
    lines = (samples.dumped(samples.mag_row() | {"question": f"Q{n}"}) for n in range(600))
    file = written(tmp_path / "m.jsonl", "\n".join(lines))
    outcome = import_run("mag", [file], tmp_path / "run", progress=Progress())
    assert outcome["debates"] == 600
    done("export", "mag", tmp_path / "run", "-o", tmp_path / "out.jsonl")
    rows = (tmp_path / "out.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(row)["question"] for row in rows] == [f"Q{n}" for n in range(600)]


def test_a_mixture_draws_from_its_files(tmp_path: Path) -> None:
    items = [{"id": n, "conversations": [{"from": "gpt", "value": f"reply {n}"}]} for n in range(10)]
    written(tmp_path / "a.json", items)
    written(tmp_path / "b.jsonl", "\n".join(map(samples.dumped, items[:4])))
    value = {
        "datasets": [
            {"json_path": "a.json", "sampling_strategy": "random:3"},
            {"json_path": "b.jsonl", "sampling_strategy": "end:50%"},
        ]
    }
    mixture = written(tmp_path / "mix.yaml", yaml.safe_dump(value))

    def drawn(run: str, *more: str) -> list[str]:
        done("import", "llava", mixture, "--run-dir", tmp_path / run, *more)
        return [debate.utterances[0].reply.text for debate in debates(tmp_path / run)]

    first = drawn("one")
    assert len(first) == 5 and first[3:] == ["reply 2", "reply 3"]
    assert drawn("two") == first
    assert any(drawn(f"seed-{seed}", "--seed", str(seed)) != first for seed in range(1, 5))


# Runs of our own


def _say(answers: tuple[str, ...], silent: bool, ask: Ask) -> str | None:
    return None if silent else rf"\boxed{{{answers[int(ask.id[-1])]}}}"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Three debates of a society, one of which used gold, one without a reply, in a stage of a loop."""
    answers = ("1", "1", "2")
    found = []
    for number in range(3):
        task = Task(id=f"../../etc/{number}", question=f"Q{number}", gold=("2",))
        silent = number == 2
        played = play(society(3), task, partial(_say, answers, silent), debate_id=f"debate-1/{number}").debate
        found.append(msgspec.structs.replace(played, cast={"generator": ("g0", "g1", "g2")}))
    assert found[1].verdict is not None
    found[1].verdict = msgspec.structs.replace(found[1].verdict, oracle=True)
    recipe = {"agents": {"g0": {"model": "m", "persona": "P", "temperature": 0}, "g1": {"model": "m"}}}
    manifest = Manifest(id="r", kind="loop", name="r", fingerprint="f", num_arenas=1, recipe=recipe, recipe_path="")
    folder = RunFolder.create(tmp_path / "run", manifest)
    (path,) = folder.journals("debate-1")
    path.parent.mkdir(parents=True)
    journal = Journal(path, fingerprint="f")
    for debate in found:
        opened = Opened(debate_id=debate.id, task=debate.task, seed=0)
        journal.commit([EventEntry(debate.id, 0, 0.0, opened), CloseEntry(debate.id, 0.0, encode_debate(debate))])
    journal.commit([EventEntry("debate-1/open", 0, 0.0, Opened(debate_id="debate-1/open", task=found[0].task, seed=0))])
    journal.close()
    folder.release()
    return tmp_path / "run"


def rows(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_rows_follow_consensus_and_gold_stays_out(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "rows.jsonl"
    assert done("export", "trl-sft", run, "-o", out)["rows"] == 2
    assert {row["completion"][0]["content"] for row in rows(out)} == {r"\boxed{1}"}
    assert done("export", "trl-sft", run, "-o", out, "--rule", "right", "--force")["rows"] == 4
    assert {row["completion"][0]["content"] for row in rows(out)} == {r"\boxed{1}"}
    assert done("export", "trl-preference", run, "-o", out, "--force")["rows"] == 4
    assert {row["chosen"][0]["content"] for row in rows(out)} == {r"\boxed{1}"}
    assert done("export", "messages", run, "-o", out, "--force")["rows"] == 3


def test_gold_labels_where_it_is_asked_to(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "rows.jsonl"
    assert "no part in the rule 'chain'" in refused(
        "export", "trl-sft", run, "-o", out, "--label", "gold", "--rule", "chain"
    )
    assert done("export", "trl-sft", run, "-o", out, "--label", "gold")["rows"] == 2
    assert {row["completion"][0]["content"] for row in rows(out)} == {r"\boxed{2}"}
    gold = ("--label", "gold", "--force")
    assert done("export", "trl-sft", run, "-o", out, *gold, "--rule", "right")["rows"] == 4
    assert {row["completion"][0]["content"] for row in rows(out)} == {r"\boxed{2}"}
    assert done("export", "trl-preference", run, "-o", out, *gold)["rows"] == 8
    assert {row["rejected"][0]["content"] for row in rows(out)} == {r"\boxed{1}"}


def test_nothing_to_write_writes_nothing(run: Path, tmp_path: Path) -> None:
    done(
        "import", "mag", written(tmp_path / "m.jsonl", samples.dumped(samples.mag_row())), "--run-dir", tmp_path / "mag"
    )
    for form in ("trl-sft", "trl-preference", "messages", "llava"):
        assert "nothing written" in refused("export", form, tmp_path / "mag", "-o", tmp_path / "out.jsonl")
    assert not (tmp_path / "out.jsonl").exists()


def test_requests_go_to_a_file_for_each_round_and_agent(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "batch"
    assert done("export", "mag-batch", run, "-o", out)["debates"] == 3
    names = [f"{number}.answer.g{agent}.jsonl" for number in range(2) for agent in range(3)]
    assert sorted(path.name for path in out.iterdir()) == names
    one, two = rows(out / "0.answer.g0.jsonl")
    assert [one["custom_id"], two["custom_id"]] == ["../../etc/0", "../../etc/1"]
    assert one["body"] == {
        "model": "fake",
        "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Q Q0"}],
        "temperature": 0.0,
        "top_p": 1.0,
        "max_tokens": 512,
    }
    assert "temperature" not in rows(out / "0.answer.g2.jsonl")[0]["body"]  # the recipe does not know that agent
    assert "is there already" in refused("export", "mag-batch", run, "-o", out)


def test_an_import_holds_no_requests(tmp_path: Path) -> None:
    file = written(tmp_path / "m.jsonl", samples.dumped(samples.mag_row()))
    done("import", "mag", file, "--run-dir", tmp_path / "run")
    assert "is an import" in refused("export", "mag-batch", tmp_path / "run", "-o", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_names_of_files_never_lead_out_of_the_folder(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "deep" / "graphs"
    done("export", "graphml", run, "-o", out)
    assert sorted(path.name for path in out.iterdir()) == ["etc-0.graphml", "etc-1.graphml", "etc-2.graphml"]
    assert [path.name for path in out.parent.iterdir()] == ["graphs"]


def test_what_is_there_is_not_overwritten(run: Path, tmp_path: Path) -> None:
    out, folder = tmp_path / "m.jsonl", tmp_path / "json"
    out.write_text("mine")
    assert "add --force" in refused("export", "messages", run, "-o", out)
    assert out.read_text() == "mine"
    folder.mkdir()
    (folder / "other.txt").write_text("mine")
    assert "add --force" in refused("export", "json", run, "-o", folder)
    done("export", "json", run, "-o", folder, "--force")
    assert (folder / "other.txt").read_text() == "mine" and len(list(folder.iterdir())) == 4
    assert "is a folder; give the path of a file" in refused("export", "messages", run, "-o", folder, "--force")
    assert "give a folder" in refused("export", "json", run, "-o", out, "--force")


def test_what_cannot_be_expressed_is_refused_whole(run: Path, tmp_path: Path) -> None:
    said = refused("export", "maft", run, "-o", tmp_path / "out.json")
    assert "debate 'debate-1/2' cannot be written as MAFT's contexts: no agent answered" in said
    assert "debate 'debate-1/0' cannot be written as a MAD log" in refused("export", "mad", run, "-o", tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_stages_and_formats_that_do_not_exist_are_named(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "o"
    assert "has no stage 'eval-9'; it has: debate-1" in refused("export", "json", run, "-o", out, "--stage", "eval-9")
    assert "cannot export 'word'" in refused("export", "word", run, "-o", out)
    assert "--rule 'wrong' is not known" in refused("export", "trl-sft", run, "-o", out, "--rule", "wrong")
    assert "is not a run's folder" in refused("export", "json", tmp_path / "none", "-o", out)
    (run / "journal" / "eval-0").mkdir()
    assert "choose one with --stage: debate-1, eval-0" in refused("export", "json", run, "-o", out)
    assert "held-out tasks" in refused("export", "trl-sft", run, "-o", out, "--stage", "eval-0")
    assert "holds no debate that has ended" in refused("export", "json", run, "-o", out, "--stage", "eval-0")


def test_one_debate_may_be_a_file(tmp_path: Path) -> None:
    done("import", "magdi", written(tmp_path / "m.json", samples.magdi()[:1]), "--run-dir", tmp_path / "run")
    done("export", "graphml", tmp_path / "run", "-o", tmp_path / "one.graphml")
    assert (tmp_path / "one.graphml").is_file()
    done("export", "magdi-graph", tmp_path / "run", "-o", tmp_path / "g.jsonl", "--edges", "magdi_legacy")
    (graph,) = rows(tmp_path / "g.jsonl")
    assert len(graph["edge_index"][0]) == 27


def test_the_commands_of_the_page_work_as_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mad_logs").mkdir()
    written(Path("mad_logs/0.json"), samples.published_mad())
    written(Path("gsm_3_2.json"), {"What is 2 + 2?": samples.maft()["What is 2 + 2?"]})
    written(Path("physics_1000.jsonl"), samples.dumped(samples.mag_row()))
    written(Path("StrategyQA_1000.json"), samples.magdi()[:1])
    written(Path("debate.json"), samples.m2d())
    written(Path("MMMU_a2r3_CoD.json"), samples.llava())
    written(Path("mixture.yaml"), yaml.safe_dump({"datasets": [{"json_path": "MMMU_a2r3_CoD.json"}]}))
    page = (Path(__file__).resolve().parents[2] / "docs" / "formats.md").read_text(encoding="utf-8")
    lines = [line for block in re.findall(r"```sh\n(.*?)```", page, re.DOTALL) for line in block.splitlines()]
    assert len(lines) > len(ALL)
    for line in lines:
        program, *arguments = line.split()
        assert program == "moot"
        result = moot(*arguments)
        assert result.exit_code == 0, f"{line}\n{result.output}"
    for name in (*READERS, *FILES, *FOLDERS):
        assert f"`{name}`" in page
