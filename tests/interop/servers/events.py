"""An event store, which the Python SDKs leave to the server, so that streams can be resumed."""


class MemoryEvents:
    def __init__(self) -> None:
        self._events: list[tuple[str, object]] = []

    async def store_event(self, stream_id, message):
        self._events.append((stream_id, message))
        return str(len(self._events))

    async def replay_events_after(self, last_event_id, send_callback):
        from_here = int(last_event_id)
        if not 0 < from_here <= len(self._events):
            return None
        stream_id = self._events[from_here - 1][0]
        for number in range(from_here, len(self._events)):
            stream, message = self._events[number]
            if stream == stream_id and message is not None:
                await send_callback(self._message(message, str(number + 1)))
        return stream_id

    def __init_subclass__(cls, *, message, **kwargs) -> None:
        super().__init_subclass__(**kwargs)
        cls._message = staticmethod(message)
