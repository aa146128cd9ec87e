/** A machine's monitor (QMP) in a WebSocket. @module */

import type { Service } from "../../vm/service.ts";
import type { Router } from "../router.ts";
import { VmParams } from "../schemas.ts";
import { requireUpgrade, type SocketSet } from "../sockets.ts";
import type { RelayWebSocket } from "./exports.ts";

/** Adds the route. */
export function addMonitorRoute(
  router: Router,
  service: Service,
  { sockets, relay }: { sockets: SocketSet; relay: RelayWebSocket },
): void {
  router.add({
    method: "get",
    path: "/v1/vms/{vm}/qmp",
    tag: "Monitor",
    summary: "The machine's monitor as a WebSocket",
    description:
      "QEMU's monitor protocol, a subset of its commands, with its names and error texts. Text " +
      "messages both ways; where a message ends means nothing, lines do. The same on the unix " +
      "socket that the machine's `qmp` names.",
    params: VmParams,
    answers: [{ status: 101, description: "A WebSocket" }],
    problems: ["vmNotFound", "wrongState", "upgradeRequired", "notSupported"],
  }, async ({ request, params }) => {
    const machine = service.machines.get(params.vm);
    requireUpgrade(request);
    const { port1, port2 } = new MessageChannel();
    try {
      await machine.call("monitorOpen", { port: port2 }, [port2]);
      const { socket, response } = sockets.upgrade(request, { protocol: null });
      void relay(socket, port1);
      return response;
    } catch (error) {
      port1.close();
      throw error;
    }
  });
}
