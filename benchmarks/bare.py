"""What a worker is measured against: bare `requests` calls from one process and its threads.

    python -m benchmarks.bare THREADS < JSON

The JSON holds `at`, the moment to begin, and `urls`, each called once. One Session serves all threads, with as many
connections to a host as there are threads and without the look at proxies and netrc at each call.
"""

import json
import sys
import threading
import time

import requests
from requests.adapters import HTTPAdapter


def main() -> None:
    threads = int(sys.argv[1])
    order = json.load(sys.stdin)
    session = requests.Session()
    session.trust_env = False
    session.mount("http://", HTTPAdapter(pool_connections=256, pool_maxsize=threads))
    # Taking the next one is a single step of the interpreter.
    urls = iter(order["urls"])
    body = json.dumps({"task_id": "0" * 36, "due_at": "2026-01-01T00:00:00+00:00", "attempt": 1}).encode()
    headers = {"Content-Type": "application/json", "webhook-id": "0" * 36, "webhook-timestamp": "0" * 10}
    begin = threading.Event()

    def work() -> None:
        begin.wait()
        for url in urls:
            session.post(url, data=body, headers=headers, timeout=30)

    callers = [threading.Thread(target=work) for _ in range(threads)]
    for caller in callers:
        caller.start()
    time.sleep(max(0.0, order["at"] - time.time()))
    begin.set()
    for caller in callers:
        caller.join()


if __name__ == "__main__":
    main()
