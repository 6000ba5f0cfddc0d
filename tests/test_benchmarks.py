# Copyright 2026 The elastic-encoders authors.
# Licensed under the Apache License, Version 2.0; see the LICENSE file.
"""examples/benchmarks/*.py for BERT-like sizes: each runs for real, on tiny ones; not how long anything takes."""

import itertools
import json

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import benchmark_utils
from benchmark_utils import Timing, compare
from modeling_mos import MosModel
from script_utils import to_flags
from testing_utils import ELASTIC, assert_close, make_batch, randomise_, tiny_sharcs, tiny_supernet


TINY = {
    "vocab_size": 50,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 24,
    "device": "cpu",
    "num_threads": 1,
    "clock": "cpu",
}
SCRIPTS = {
    "benchmark_mos": {"step_shapes": ["2x8"], "inference_batch_sizes": [1, 2], "sequence_length": 8},
    "benchmark_routing": {
        "lengths": ["sst2", "7"],
        "batch_sizes": [1, 4],
        "rows": 6,
        "router_layer": 1,
        "training_rows": 6,
        "training_batch_size": 3,
    },
    "benchmark_growth": {
        "experts": [1, 2],
        "layers": [1, 2],
        "sequences": [1, 2],
        "sequence_length": 8,
        "search_rounds": [0, 1],
    },
}


@pytest.fixture
def run(load_example):
    """A benchmark in this process at tiny sizes, with settings that keyword arguments add."""

    def run(name: str, **options):
        return load_example(f"benchmarks/{name}.py").main(to_flags({**TINY, **SCRIPTS[name], **options}))

    return run


@pytest.mark.parametrize("name", [*SCRIPTS, "benchmark_startup"])
def test_help(load_example, capsys, name):
    with pytest.raises(SystemExit) as stopped:
        load_example(f"benchmarks/{name}.py").main(["--help"])
    assert stopped.value.code == 0
    assert "--hidden_size" in capsys.readouterr().out


def assert_spread(found: dict[str, float]) -> None:
    assert list(found) == ["median", "lowest", "highest"]
    assert 0 < found["lowest"] <= found["median"] <= found["highest"]


def test_supernets(run, load_example, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("GOMP_SPINCOUNT", "77")
    path = tmp_path / "mos.json"
    results = run("benchmark_mos", output_file=str(path))
    assert json.loads(path.read_text()) == json.loads(capsys.readouterr().out) == results
    assert (results["threads"], results["clock"], results["rounds"]) == (1, "cpu", 5)
    assert results["environment"]["GOMP_SPINCOUNT"] == "77" and "PATH" not in results["environment"]
    step = results["training"]["2x8"]
    assert list(step) == ["plain", "none", "layer", "neuron", "switching", "products"]
    for routing in ("none", "layer", "neuron"):
        rates = ("flops_per_second", "flop_rate_over_plain", "whole_layers_flop_rate_over_plain")
        for name in ("seconds", "time_over_none", *rates):
            assert_spread(step[routing][name])
    assert step["none"]["time_over_none"] == {"median": 1, "lowest": 1, "highest": 1}
    assert_spread(step["switching"]["share_of_step"])
    assert 0.5 < step["products"]["useful_share"] < 1
    assert list(results["inference"]) == ["1", "2"]
    for found in results["inference"].values():
        assert list(found["seconds"]) == ["subnet", "supernet", "unmerged", "extraction"]
        for name in ("time_over_supernet", "time_over_unmerged", "extraction_over_forward"):
            assert_spread(found[name])
        # Bottlenecks of few tokens are cheaper one after the other.
        assert 0.5 < found["flops_over_unmerged"] < 1 and 0.5 < found["flops_over_supernet"] < 1
    assert path.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    steps, subnets = load_example("benchmarks/benchmark_mos.py").over_sizes(results).values()
    assert list(steps) == ["routing none", "routing layer", "routing neuron"] and list(steps["routing none"]) == [2]
    median, lowest, highest = subnets["over the supernet"][1]
    assert 0 < lowest <= median <= highest
    assert median == 1 / results["inference"]["1"]["time_over_supernet"]["median"]


def test_subnets_have_a_limit(run, load_example, capsys, monkeypatch):
    free = run("benchmark_mos", parts=["inference"], inference_batch_sizes=[1])
    limit = free["parameters"] - 1
    small = run("benchmark_mos", parts=["inference"], inference_batch_sizes=[1], max_parameters=limit)
    assert small["parameters"] <= limit and small["architecture"] != free["architecture"]
    monkeypatch.setattr(load_example("benchmarks/benchmark_mos.py"), "benchmark_training", lambda *_: 1 / 0)
    with pytest.raises(ValueError, match="100"):  # before the steps
        run("benchmark_mos", max_parameters=100)
    with pytest.raises(ValueError, match="--max_parameters is of the subnet that --parts inference takes out"):
        run("benchmark_mos", parts=["training"], max_parameters=limit)
    with pytest.raises(ValueError, match="max_parameters"):
        run("benchmark_mos", max_parameters=-5)


def test_all_routings_take_the_same_steps(load_example, monkeypatch):
    script = load_example("benchmarks/benchmark_mos.py")
    ran = []
    original = script.make_step

    def spy(trainer):
        step = original(trainer)

        def run(batch):
            if isinstance(trainer, script.SupernetTrainer):
                ran.append(
                    (
                        trainer.model.config.routing,
                        tuple(trainer.architectures_of_step(trainer.state.global_step).values()),
                    )
                )
            before = [parameter.clone() for parameter in trainer.model.parameters()]
            step(batch)
            assert any(not torch.equal(old, new) for old, new in zip(before, trainer.model.parameters(), strict=True))

        return run

    monkeypatch.setattr(script, "make_step", spy)
    script.main(to_flags({**TINY, **SCRIPTS["benchmark_mos"], "parts": ["training"], "num_hidden_layers": 4}))
    by_routing = {name: [archs for routing, archs in ran if routing == name] for name in ("none", "layer", "neuron")}
    assert by_routing["none"] == by_routing["layer"] == by_routing["neuron"]
    assert len(by_routing["none"]) == 6 and len(set(by_routing["none"])) > 1


def test_compiled_steps(load_example, monkeypatch, tmp_path):
    script = load_example("benchmarks/benchmark_mos.py")
    models, make = [], script.make_trainer

    def spy(model, folder, device, **options):
        assert options == {"torch_compile": True}
        trainer = make(model, folder, device, torch_compile_backend="eager", **options)
        models.append(model)
        return trainer

    monkeypatch.setattr(script, "make_trainer", spy)
    # To compile takes minutes; what is to be compiled is all that matters here.
    monkeypatch.setattr(script, "benchmark_training", lambda *_: {})
    flags = {**TINY, **SCRIPTS["benchmark_mos"], "parts": ["training"], "torch_compile": True}
    assert script.main(to_flags(flags))["options"]["torch_compile"] is True
    plain, *supernets = models
    assert plain._compiled_call_impl is not None and len(supernets) == 3
    for supernet in supernets:
        assert supernet._compiled_call_impl is None
        assert all(layer._compiled_call_impl is not None for layer in supernet.base_model.layers)


def test_counted_flops(load_example):
    script = load_example("benchmarks/benchmark_mos.py")
    supernet = tiny_supernet("masked-lm", routing="none", num_experts=1, search_space={"bottleneck": False})
    sizes = benchmark_utils.ModelSizes(
        **{name: getattr(supernet.config, name) for name in TINY if hasattr(supernet.config, name)}
    )
    everything = torch.ones(2, 8, dtype=torch.long)
    largest = [supernet.search_space.largest()]
    assert script.count_supernet_step(supernet, largest, everything) == script.count_plain_step(sizes, (2, 8))
    half = everything.clone()
    half[:, ::2] = -100
    assert counted_in_training(supernet, labels=half) == script.count_supernet_step(supernet, largest, half)
    # Layers that return hidden states are run as a whole.
    found = counted_in_training(supernet, labels=half, output_hidden_states=True)
    assert found == script.count_supernet_step(supernet, largest, half, whole_layers=True)
    supernet = tiny_supernet("masked-lm", search_space=ELASTIC)
    for seed in range(4):
        architecture = supernet.sample_architecture(seed=seed)
        for labels in (everything, half):
            found = counted_in_training(supernet.extract_subnet(architecture), labels=labels)
            assert found == script.count_supernet_step(supernet, [architecture], labels)


def test_counted_products(load_example):
    script = load_example("benchmarks/benchmark_mos.py")
    supernet = tiny_supernet("base", search_space=ELASTIC).eval()
    architecture = supernet.sample_architecture(seed=1)
    subnet, unmerged = supernet.extract_subnet(architecture), supernet.extract_subnet(architecture)
    script.unmerge_bottlenecks(unmerged, supernet, architecture)
    ids = torch.ones(2, 8, dtype=torch.long)
    implementation = subnet.config._attn_implementation
    assert implementation == "sdpa"
    counted = script.count_forward(subnet, input_ids=ids)
    assert counted == 2 * supernet.count_flops(architecture, 8)
    assert subnet.config._attn_implementation == implementation
    sizes, stream = architecture.hidden_sizes, supernet.config.hidden_size
    more = sum(before * stream + stream * after - before * after for before, after in itertools.pairwise(sizes))
    assert script.count_forward(unmerged, input_ids=ids) == counted + 2 * 16 * more


def counted_in_training(model, rows: int = 2, **inputs) -> int:
    """FLOPs of a training step, three times those of a forward pass."""
    model.config.sparse_prediction = True
    model.set_attn_implementation("eager")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.train()(input_ids=torch.ones(rows, 8, dtype=torch.long), **inputs)
    return 3 * counter.get_total_flops()


@pytest.mark.parametrize("width", [0.25, 0.5, 1.0])
def test_counted_flops_of_routed_training(load_example, width):
    script, routed = load_example("benchmarks/benchmark_routing.py"), tiny_sharcs()
    assert script.count_training_row(routed, 8, width) == counted_in_training(routed, rows=1, width=width)


def test_unmerged_bottlenecks_are_the_same_function(load_example):
    script = load_example("benchmarks/benchmark_mos.py")
    supernet = randomise_(tiny_supernet("base", search_space=ELASTIC)).eval()
    assert isinstance(supernet, MosModel)
    architecture = supernet.sample_architecture(seed=1)
    merged, unmerged = supernet.extract_subnet(architecture), supernet.extract_subnet(architecture)
    script.unmerge_bottlenecks(unmerged, supernet, architecture)
    assert unmerged.num_parameters() > merged.num_parameters()
    batch = make_batch(supernet.config)
    assert_close(unmerged(**batch).last_hidden_state, merged(**batch).last_hidden_state)


def test_routing(run, tmp_path, capsys):
    path = tmp_path / "routing.json"
    results = run("benchmark_routing", narrow_share=0.5, output_file=str(path))
    assert path.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    assert json.loads(capsys.readouterr().out) == results
    assert list(results["inference"]) == ["sst2", "7"] and results["inference"]["7"]["mean_length"] == 7
    for found in results["inference"].values():
        assert 0 < found["narrow_share"] < 1 and found["flops_share"] > 0
        assert list(found["batch_sizes"]) == ["1", "4"]
        for entry in found["batch_sizes"].values():
            assert list(entry["seconds"]) == ["plain", "routed", "packed", "widest"]
            share = found["flops_share"]
            for end in ("", "_unpacked"):
                assert_spread(entry[f"speedup{end}"])
                expected = {name: share * ratio for name, ratio in entry[f"speedup{end}"].items()}
                assert entry[f"of_limit{end}"] == pytest.approx(expected)
    training = results["training"]
    assert_spread(training["flops_share"])
    assert_spread(training["time_over_plain"])
    assert_spread(training["over_flops"])


def test_lengths_follow_the_distribution(load_example):
    script = load_example("benchmarks/benchmark_routing.py")
    rows = script.draw_rows("mrpc", 3000, vocab_size=50, seed=0)
    assert sum(map(len, rows)) / len(rows) == pytest.approx(53.2, abs=1)
    assert max(map(max, rows)) == 49 and min(map(min, rows)) == 1  # no padding among the tokens
    assert rows == script.draw_rows("mrpc", 3000, vocab_size=50, seed=0)
    assert rows != script.draw_rows("mrpc", 3000, vocab_size=50, seed=1)


def test_growth(run, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    results = run("benchmark_growth", plot=str(tmp_path / "growth.png"))
    assert json.loads(capsys.readouterr().out) == results
    assert (tmp_path / "growth.png").read_bytes().startswith(b"\x89PNG")
    numbers = {name: list(results[name]["seconds"]) for name in ("experts", "layers", "tokens", "candidates")}
    assert numbers | {"candidates": []} == {
        "experts": ["1", "2"],
        "layers": ["1", "2"],
        "tokens": ["8", "16"],
        "candidates": [],
    }
    assert numbers["candidates"][0] == "8" and int(numbers["candidates"][1]) > 8


def test_a_straight_line(load_example):
    script = load_example("benchmarks/benchmark_growth.py")
    line = script.fit_line({1: 3.0, 2: 5.0, 4: 9.0})
    assert line == pytest.approx({"seconds_at_zero": 1, "seconds_each": 2, "worst_residual": 0})
    assert script.fit_line({1: 3.0, 2: 5.0, 4: 12.0})["worst_residual"] > 0.05


def test_processes_take_turns(load_example, monkeypatch):
    script = load_example("benchmarks/benchmark_startup.py")
    ran = []
    monkeypatch.setattr(script, "time_process", lambda *code: ran.append(code) or len(ran))
    seconds = script.time_processes({"a": ("1", "2"), "b": ("3", "4")}, Timing(warmup_rounds=1))
    assert ran == [("1", "2", "wall"), ("3", "4", "wall")] * 6
    assert seconds == {"a": [3, 5, 7, 9, 11], "b": [4, 6, 8, 10, 12]}


def test_one_process(load_example):
    script = load_example("benchmarks/benchmark_startup.py")
    assert 0.2 < script.time_process("import time", "time.sleep(0.2)", "wall") < 60
    assert script.time_process("import time", "time.sleep(0.2)", "cpu") < 0.2


def test_startup_compares_models_of_one_size(load_example, tmp_path):
    script = load_example("benchmarks/benchmark_startup.py")
    sizes = benchmark_utils.ModelSizes(**{name: TINY[name] for name in list(TINY)[:5]})
    parameters = script.save_models(tmp_path, sizes)
    assert parameters["stock"] == pytest.approx(parameters["subnet"], rel=0.05)
    assert {path.name for path in tmp_path.iterdir()} == {"subnet", "stock"}


def test_ratios_are_taken_within_rounds():
    assert compare([1.0, 4.0, 3.0], [1.0, 2.0, 1.0]) == {"median": 2, "lowest": 1, "highest": 3}


@pytest.mark.parametrize(
    "name, options, message",
    [
        (
            "benchmark_mos",
            {"parts": ["training", "singing"]},
            "--parts takes any of training, inference, got 'singing'",
        ),
        ("benchmark_mos", {"step_shapes": ["4"]}, "--step_shapes takes SEQUENCESxTOKENS, such as 4x128, got '4'"),
        ("benchmark_mos", {"rounds": 4}, "--rounds must be at least 5, got 4"),
        ("benchmark_mos", {"inference_batch_sizes": [2, 0]}, "--inference_batch_sizes must be at least 1, got 0"),
        ("benchmark_routing", {"batch_sizes": [0]}, "--batch_sizes must be at least 1, got 0"),
        ("benchmark_routing", {"rows": 6, "batch_sizes": [7]}, "--batch_sizes must be at most --rows, 6, got 7"),
        ("benchmark_routing", {"lengths": ["0"]}, "--lengths takes 1 to 512 tokens a sequence, got 0"),
        ("benchmark_mos", {"sequence_length": 513}, "--sequence_length takes 1 to 512 tokens a sequence, got 513"),
        ("benchmark_mos", {"step_shapes": ["4x1000"]}, "--step_shapes takes 1 to 512 tokens a sequence, got 1000"),
        (
            "benchmark_routing",
            {"training_rows": 6, "training_batch_size": 7},
            "--training_batch_size must be at most --training_rows, 6, got 7",
        ),
        ("benchmark_routing", {"training_rows": 0}, "--training_rows must be at least 1, got 0"),
        ("benchmark_mos", {"num_threads": 2}, "--clock cpu needs one thread and the CPU, got 2 on 'cpu'"),
        ("benchmark_routing", {"parts": ["x"]}, "--parts takes any of inference, training, got 'x'"),
        ("benchmark_routing", {"narrow_share": 1}, r"--narrow_share must lie in \(0, 1\), got 1.0"),
        (
            "benchmark_routing",
            {"lengths": ["rte"]},
            r"--lengths takes numbers .* any of \['mrpc', 'sst2'\], got 'rte'",
        ),
        ("benchmark_growth", {"layers": [3, 3]}, r"--layers needs two different numbers or more, got \[3, 3\]"),
    ],
)
def test_messages(run, name, options, message):
    threads = torch.get_num_threads()
    try:
        with pytest.raises(ValueError, match=message):
            run(name, **options)
    finally:
        torch.set_num_threads(threads)
