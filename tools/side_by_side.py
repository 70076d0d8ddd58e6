#!/usr/bin/env python3
"""Times GRETA and an installed llama.cpp on the same file, one after the other in turn, and prints ratios.

    tools/side_by_side.py MODEL.gguf                                         # llama-bench of PATH, else llama-cpp-python
    tools/side_by_side.py MODEL.gguf --peer 'ik=/opt/ik/llama-bench -rtr 1' --peer 'llama.cpp=/opt/llama-bench'
    tools/side_by_side.py MODEL.gguf --greta 'build/release/greta --activations 8' --pp 512 --tg 32 --rounds 5

A peer is NAME=COMMAND, a llama-bench with options of its own, or NAME=python for the llama_cpp module of this Python.
Each round runs every program once, GRETA first, each with a warm-up of its own. A ratio is GRETA's tokens a second over the
peer's in the same round; the table has the medians, and the ratios' smallest and largest. Status 2: something could not run.
"""

import argparse
import json
import shlex
import shutil
import statistics
import subprocess
import sys
import time


def fail(message):
    print(f"side_by_side: {message}", file=sys.stderr)
    sys.exit(2)


def output_of(command):
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except OSError as error:
        fail(f"cannot run {command[0]}: {error.strerror}")
    if done.returncode != 0:
        fail(f"'{shlex.join(command)}' ended with status {done.returncode}: {done.stderr.strip()[-500:]}")
    try:
        return json.loads(done.stdout)
    except json.JSONDecodeError:
        fail(f"'{shlex.join(command)}' printed no JSON: {done.stdout[:200]!r}")


def greta_rows(command, args):
    """{"pp512": tokens/s, ...}"""
    program, *options = shlex.split(command)
    found = output_of([program, "bench", args.model, "--pp", str(args.pp), "--tg", str(args.tg), "--threads",
                       str(args.threads), "--repeat", "1", "--json", "--quiet", *options])
    return {row["test"]: row["tokens_per_s"] for row in found["rows"]}


def peer_rows(command, args):
    if command == "python":
        command = f"{shlex.quote(sys.executable)} {shlex.quote(__file__)} --as-peer"
    found = output_of([*shlex.split(command), "-m", args.model, "-p", str(args.pp), "-n", str(args.tg), "-t",
                       str(args.threads), "-r", "1", "-o", "json"])
    rows = {}
    for row in found:
        name = f"pp{row['n_prompt']}" if row["n_prompt"] else f"tg{row['n_gen']}"
        rows[name] = row["avg_ts"]
    return rows


def as_peer(arguments):
    """The llama_cpp module behind the few options of llama-bench that peer_rows() uses."""
    parser = argparse.ArgumentParser()
    parser.add_argument("-m")
    for option in "pntr":
        parser.add_argument(f"-{option}", type=int)
    parser.add_argument("-o")
    args = parser.parse_args(arguments)
    import llama_cpp

    model = llama_cpp.Llama(args.m, n_ctx=args.p + args.n + 8, n_batch=512, n_threads=args.t, n_threads_batch=args.t,
                            verbose=False)
    rows = []
    for prompt, new in ((args.p, 0), (0, args.n)):
        if prompt + new == 0:
            continue
        for timed in (False, True):
            model.reset()
            start = time.monotonic()
            if prompt:
                model.eval([(7 * i) % 1000 + 3 for i in range(prompt)])
            for i in range(new):
                model.eval([i % 1000 + 3])
            seconds = time.monotonic() - start
        rows.append({"n_prompt": prompt, "n_gen": new, "avg_ts": (prompt + new) / seconds})
    print(json.dumps(rows))


def default_peer():
    if shutil.which("llama-bench"):
        return "llama.cpp=llama-bench"
    try:
        import llama_cpp
    except ImportError:
        fail("expected a peer: --peer NAME=COMMAND, llama-bench in PATH, or the module of 'pip install llama-cpp-python'")
    return f"llama-cpp-python {llama_cpp.__version__}=python"


def main():
    if sys.argv[1:2] == ["--as-peer"]:
        as_peer(sys.argv[2:])
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--greta", default="build/release/greta", help="program and options of bench [%(default)s]")
    parser.add_argument("--peer", action="append", metavar="NAME=COMMAND")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--pp", type=int, default=512, help="tokens to prefill [%(default)s]")
    parser.add_argument("--tg", type=int, default=32, help="tokens to decode [%(default)s]")
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    if args.rounds < 1:
        fail(f"--rounds: expected 1 or more, got {args.rounds}")
    peers = []
    for peer in args.peer or [default_peer()]:
        name, equals, command = peer.partition("=")
        if not equals or not command:
            fail(f"--peer: expected NAME=COMMAND, got '{peer}'")
        peers.append((name, command))

    rounds = []
    for number in range(args.rounds):
        rounds.append((greta_rows(args.greta, args), [peer_rows(command, args) for _, command in peers]))
        print(f"side_by_side: round {number + 1} of {args.rounds}", file=sys.stderr)
    print(f"{'test':8} {'program':24} {'tokens/s':>9} {'GRETA / it':>11}   min .. max")
    for test in rounds[0][0]:
        ours = [greta[test] for greta, _ in rounds]
        print(f"{test:8} {'greta':24} {statistics.median(ours):9.2f}")
        for index, (name, _) in enumerate(peers):
            theirs = [found[index].get(test) for _, found in rounds]
            if None in theirs:
                fail(f"{name} has no row {test}")
            ratios = [a / b for a, b in zip(ours, theirs)]
            print(f"{test:8} {name:24} {statistics.median(theirs):9.2f} {statistics.median(ratios):11.3f}   "
                  f"{min(ratios):.3f} .. {max(ratios):.3f}")


if __name__ == "__main__":
    main()
