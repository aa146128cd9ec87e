/** The browser library, as modules that a page imports. @module */

import { CLIENT_ENTRY, CLIENT_MODULES, clientModule } from "../../client/modules.ts";
import type { Router } from "../router.ts";

/** Adds the routes: `/client/client.js` is the library's door, the others are what it imports. */
export function addClientRoutes(router: Router): void {
  for (const path of [CLIENT_ENTRY, ...CLIENT_MODULES]) {
    router.add({
      method: "get",
      path: `/client/${path}`,
      tag: "Exports",
      summary: "The browser library: reads an export over NBD in a WebSocket",
      isUnlisted: path !== CLIENT_ENTRY,
      access: "public",
      answers: [{ status: 200, description: "A JavaScript module", body: "text/javascript" }],
      problems: [],
    }, async () =>
      new Response(await clientModule(path), {
        headers: { "content-type": "text/javascript; charset=utf-8" },
      }));
  }
}
