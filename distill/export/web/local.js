// In place of the server: a worker recognises in this browser, behind the interface of a WebSocket.

class LocalSocket {
  constructor() {
    this.readyState = WebSocket.OPEN;
    this.bufferedAmount = 0; // bytes that the worker has not taken yet
    this.worker = new Worker(new URL("worker.js", import.meta.url), { type: "module" });
    this.worker.onmessage = ({ data }) => {
      if (data.event === "taken") this.bufferedAmount -= data.bytes;
      else this.onmessage?.({ data: JSON.stringify(data) });
    };
    this.worker.onerror = (error) => {
      const message = error.message || "the model cannot be loaded";
      this.onmessage?.({ data: JSON.stringify({ event: "error", message }) });
    };
  }

  send(data) {
    if (typeof data === "string") {
      this.worker.postMessage(JSON.parse(data));
    } else {
      this.bufferedAmount += data.byteLength;
      this.worker.postMessage(data, [data]);
    }
  }

  close() {
    this.readyState = WebSocket.CLOSED;
    this.worker.terminate();
  }
}

globalThis.openSocket = () => new LocalSocket();
navigator.serviceWorker?.register("offline.js").catch(() => {}); // without it the page only needs its server again
