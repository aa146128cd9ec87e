/** The page that shows the files of a snapshot in the browser. @module */

import { CLIENT_ENTRY } from "../../client/modules.ts";
import type { Router } from "../router.ts";

const FILES = [
  { path: "/files", file: "files.html", type: "text/html" },
  { path: "/files/files.js", file: "files.js", type: "text/javascript" },
  { path: "/files/files.css", file: "files.css", type: "text/css" },
];

/** How the page names the browser library, which stands elsewhere for a browser. */
const LIBRARY = '"../../client/mod.ts"';

/** It reads over WebSockets; a squashfs may need a decompressor in WebAssembly, from a data URL. */
const POLICY = "default-src 'none'; style-src 'self'; script-src 'self' 'wasm-unsafe-eval'; " +
  "connect-src 'self' ws: wss: data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/** Adds the routes. The page itself tells nothing: whoever has no token sees no snapshot in it. */
export function addFilesPage(router: Router): void {
  for (const { path, file, type } of FILES) {
    router.add(
      {
        method: "get",
        path,
        tag: "Exports",
        summary: "A page that shows the files of a snapshot",
        isUnlisted: path !== "/files",
        access: "public",
        answers: [{ status: 200, description: "The page", body: type }],
        problems: [],
      },
      async () => {
        const text = await Deno.readTextFile(new URL(`../ui/${file}`, import.meta.url));
        return new Response(text.replace(LIBRARY, `"/client/${CLIENT_ENTRY}"`), {
          headers: {
            "content-type": `${type}; charset=utf-8`,
            "content-security-policy": POLICY,
          },
        });
      },
    );
  }
}
