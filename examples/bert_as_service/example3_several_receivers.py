"""Encode once, and hand every answer to several receivers.

bert-as-service sent each answer to all clients of one identity. Here answers go to the client that
asked, and it hands them on: through queues to threads as below, through a message broker to other
machines.

Source of the idea: example 3 of bert-as-service.
"""
# ruff: noqa: T201 - an example prints

import argparse
import queue
import threading

from bertron_client.bert_as_service import BertClient, Response

BATCHES = [
    ["The battery lasts all day.", "The screen is too dark."],
    ["Great sound."],
    ["It stopped working after a week.", "Support was friendly.", "I would buy it again."],
]
Inbox = queue.SimpleQueue[Response | None]


def receive(name: str, inbox: Inbox, received: dict[str, int]) -> None:
    """Count vectors until None says that there are no more."""
    while (response := inbox.get()) is not None:
        received[name] = received.get(name, 0) + len(response.embedding)


def main() -> None:
    """Start the receivers, encode, hand on."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--url", default="grpc://127.0.0.1:8001")
    parser.add_argument("--receivers", type=int, default=3)
    args = parser.parse_args()

    received: dict[str, int] = {}
    inboxes: list[Inbox] = [queue.SimpleQueue() for _ in range(args.receivers)]
    threads = [
        threading.Thread(target=receive, args=(f"receiver {number}", inbox, received))
        for number, inbox in enumerate(inboxes, start=1)
    ]
    for thread in threads:
        thread.start()
    try:
        with BertClient(url=args.url) as bc:
            for response in bc.encode_async(BATCHES):
                for inbox in inboxes:
                    inbox.put(response)
    finally:
        for inbox in inboxes:
            inbox.put(None)
        for thread in threads:
            thread.join()
    for name, count in sorted(received.items()):
        print(f"{name} got {count} vectors")


if __name__ == "__main__":
    main()
