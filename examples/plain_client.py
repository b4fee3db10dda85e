"""Call an actor without Loom, as loom/wire/PROTOCOL.md says: plain_client.py NODE_ENDPOINT ACTOR METHOD [JSON...]"""

import json
import sys

import zmq
from msgpack import packb, unpackb


def ask(endpoint, method, args, call_id, timeout_s=30):
    """Yield what one call gives: its result, or the items of its stream as they come."""
    with zmq.Context.instance().socket(zmq.DEALER) as actor, actor.connect(endpoint):
        actor.linger = 0
        actor.send(packb({"id": call_id, "kind": "call", "name": method, "body": [args]}))
        while actor.poll(timeout_s * 1000):
            header, *frames = map(unpackb, actor.recv_multipart()[:2])
            kind, body = header["kind"], header["body"] if "body" in header else frames[0]
            if kind == "error":
                sys.exit(f"{body['code']} {body['type']}: {body['message']}")
            if kind in ("reply", "item"):
                yield body
            if kind in ("reply", "end"):
                return
            if kind == "item":  # taken, so there is room for one more
                actor.send(packb({"id": call_id, "kind": "credit", "correlation_id": call_id, "credit": 1}))
        sys.exit(f"no answer within {timeout_s} s")


node, name, method, *args = sys.argv[1:]
(address,) = ask(node, "resolve", [name], 1)
for value in ask(address["endpoint"], method, [json.loads(arg) for arg in args], 2):
    print(json.dumps(value, default=str))
