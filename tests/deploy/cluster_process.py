"""A Ray cluster of three nodes in this process, with the applications of a Serve config on it.

Prints one line of JSON for what it is told on stdin: `kill` a node that has a replica of generation, head excepted;
`replicas` of generation with what they tell of themselves; an end of the input ends everything. The first line is
printed once the applications run. Ray adds and removes nodes from the main thread alone.
"""

import json
import os
import signal
import sys
import time

import psutil
import ray
import yaml
from ray import serve
from ray.cluster_utils import Cluster
from ray.serve.context import _get_global_client
from ray.serve.schema import ServeDeploySchema

_READY_SECONDS = 240


def main(config: dict) -> None:
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "resources": {"coordinator": 1}})
    for _ in range(2):
        cluster.add_node(num_cpus=1)
    ray.init(address=cluster.address, log_to_driver=False, logging_level="WARNING")
    serve.start(proxy_location=config["proxy_location"])
    # What `serve deploy` has the controller do.
    _get_global_client().deploy_apps(ServeDeploySchema.model_validate(config))
    _await_running()
    _say({"nodes": len(ray.nodes())})
    for line in sys.stdin:
        match line.strip():
            case "kill":
                _say({"killed": _kill(cluster)})
            case "replicas":
                _say(_replicas())
            case other:
                raise ValueError(other)
    serve.shutdown()
    ray.shutdown()
    cluster.shutdown()


def _await_running() -> None:
    deadline = time.monotonic() + _READY_SECONDS
    while any(one.status != "RUNNING" for one in serve.status().applications.values()):
        if time.monotonic() > deadline:
            raise TimeoutError(str(serve.status()))
        time.sleep(0.2)


def _kill(cluster: Cluster) -> list[str]:
    """SIGKILL a node with all that runs on it, and return the replicas that were there."""
    for node in cluster.worker_nodes:
        raylet = psutil.Process(node.all_processes["raylet"][0].process.pid)
        workers = raylet.children(recursive=True)
        titles = [title for worker in workers if (title := _title(worker)).startswith("ray::ServeReplica:")]
        if any(title.startswith("ray::ServeReplica:generation:") for title in titles):
            cluster.remove_node(node, allow_graceful=False)
            for worker in workers:
                try:
                    worker.send_signal(signal.SIGKILL)
                except psutil.NoSuchProcess:
                    # It had noticed already.
                    continue
            return titles
    raise LookupError("no worker node has a replica of generation")


def _title(process: psutil.Process) -> str:
    try:
        return process.cmdline()[0]
    except (psutil.Error, IndexError):
        return ""


def _replicas() -> dict[str, dict]:
    names = [
        each["name"]
        for each in ray.util.list_named_actors(all_namespaces=True)
        if each["name"].startswith("SERVE_REPLICA::generation#")
    ]
    told = {name: ray.get_actor(name, namespace="serve").record_routing_stats.remote() for name in names}
    return {name: _told(reference) for name, reference in told.items()}


def _told(reference: ray.ObjectRef) -> dict:
    try:
        return ray.get(reference)
    except (ray.exceptions.RayTaskError, ray.exceptions.RayActorError):
        # It is starting, or has just ended.
        return {"models": [], "trajectories": 0}


def _say(what: object) -> None:
    print(json.dumps(what), file=_ANSWERS, flush=True)


if __name__ == "__main__":
    # Ray tells of dead nodes on stdout; what it says goes to stderr.
    _ANSWERS = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    with open(sys.argv[1]) as file:
        main(yaml.safe_load(file))
