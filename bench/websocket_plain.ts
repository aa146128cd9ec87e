/**
 * The ceiling for NBD over WebSocket: a server, run as a process of its own, that only sends. To
 * each message, a decimal count, it answers with so many binary frames of 256 KiB, out of one
 * buffer, as long as little waits to be sent. Prints its port. A page of its own is at its address,
 * from which a browser may connect.
 *
 * @module
 */

const FRAME = new Uint8Array(256 * 1024).fill(0x5a);
const BUFFERED_BYTES = 4 * 1024 * 1024;

function sendFrames(socket: WebSocket, count: number): void {
  let left = count;
  const send = () => {
    while (left > 0 && socket.readyState === WebSocket.OPEN) {
      if (socket.bufferedAmount >= BUFFERED_BYTES) return void setTimeout(send, 0);
      socket.send(FRAME);
      left--;
    }
  };
  send();
}

const server = Deno.serve({ hostname: "127.0.0.1", port: 0, onListen: () => {} }, (request) => {
  if (request.headers.get("upgrade") === null) {
    const headers = { "content-type": "text/html" };
    return new Response("<!doctype html><title>frames</title>", { headers });
  }
  const { socket, response } = Deno.upgradeWebSocket(request);
  socket.onmessage = ({ data }) => sendFrames(socket, Number(data));
  return response;
});
Deno.stdout.writeSync(new TextEncoder().encode(`${server.addr.port}\n`));
