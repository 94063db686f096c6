"""Ctrl-C while a call runs: the program ends, without a wait and without a traceback of a thread."""

import signal
import subprocess
import sys
import threading

import grpc

from support.scripted_server import AUDIT_ID, Script

END_SECONDS = 30
ROUNDS = 60

A_CALL = f"""
import sys
from unerase import Client
with Client({{address!r}}) as client:
    client.get_audit({AUDIT_ID!r})
"""

# The loop is in gRPC nearly all the time, and each round is interrupted elsewhere in it.
MANY_CALLS = f"""
import os, signal, threading
from unerase import Client
for round in range({ROUNDS}):
    try:
        with Client({{address!r}}) as client:
            client.get_audit({AUDIT_ID!r})
            threading.Timer(round * 1e-4, os.kill, (os.getpid(), signal.SIGINT)).start()
            while True:
                for event in client.watch({AUDIT_ID!r}):
                    pass
    except KeyboardInterrupt:
        print("interrupted", flush=True)
"""


def test_a_program_that_waits_for_an_answer_ends(address: str, script: Script) -> None:
    arrived, ended = threading.Event(), threading.Event()

    def silent(context: grpc.ServicerContext) -> None:
        if context.add_callback(ended.set):
            arrived.set()
            ended.wait(END_SECONDS)

    script.failures["GetAudit"] = [silent]
    program = subprocess.Popen([sys.executable, "-c", A_CALL.format(address=address)], stderr=subprocess.PIPE)
    try:
        assert arrived.wait(END_SECONDS)
        program.send_signal(signal.SIGINT)
        assert b"KeyboardInterrupt" in program.communicate(timeout=END_SECONDS)[1]
    finally:
        program.kill()


def test_a_program_ends_wherever_it_stands(address: str) -> None:
    program = subprocess.Popen(
        [sys.executable, "-c", MANY_CALLS.format(address=address)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        said, problems = program.communicate(timeout=END_SECONDS)
        assert said.splitlines() == ["interrupted"] * ROUNDS
        assert problems == ""
    finally:
        program.kill()
