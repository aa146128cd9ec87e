/** Bad input, and what is made of it. @module */

import type { Script } from "../support/qmp_sides.ts";

/** Texts that are one message each, whatever they are. */
const TEXTS = [
  '{"execute":"query-jobs"}',
  "{'execute':'query-jobs','id':'single'}",
  "01",
  '{"execute" "x"}',
  "foo",
  '{"a":1,"a":2}',
  '"\\ud800"',
  '"\\udc00"',
  '"\\ud83d\\ude00"',
  '"\\ud83d\\u0041"',
  '"\\u0041\\ud83d"',
  '"\\uFFFE"',
  '"\\uFDD0"',
  '"\\u12"',
  '"\\x"',
  '"\\\'"',
  '"\u00e4"',
  "{'execute':'query-jobs','id':1.0}",
  '{"execute":"query-jobs","id":18446744073709551615}',
  '{"execute":"query-jobs","id":-9223372036854775808}',
  '{"execute":"query-jobs","id":-0}',
  '{"execute":"query-jobs","id":1e3}',
  '{"execute":"query-jobs","id":0.5}',
  '{"execute":"query-jobs","id":[1,{"b":null,"a":true}]}',
  '{"execute":"query-jobs","id":"\u00e4\\u00e4\\n\\u0001\\"\\ud83d\\ude00"}',
  "%d",
  "1.",
  "-",
  "-x",
  "1e",
  "1ex",
  "tru ",
  "[1,]",
  "[1 2]",
  "[,]",
  "{,}",
  '{"a"}',
  '{"a":}',
  '{"a":1,}',
  '{"a":1 "b":2}',
  "{1:2}",
  "{null:2}",
  "]",
  "}",
  ",",
  ":",
  "@",
  "A",
  "\u00e4",
  "nul",
  "null",
  '{"execute":"x-y","id":{"a":[1,null]}}',
  '{"execute":5}',
  '{"execute":null,"id":3}',
  '{"arguments":{}}',
  "{}",
  '{"execute":"query-jobs","arguments":[]}',
  '{"execute":"query-jobs","foo":1}',
  '{"execute":"query-jobs","arguments":{"a":1}}',
  '{"exec-oob":"query-jobs"}',
  '{"execute":"qmp_capabilities"}',
  "[]",
  "5",
  '"text"',
  '{"execute":"blockdev-add","arguments":{"driver":"null-co","size":"x"}}',
  '{"execute":"blockdev-add","arguments":{"driver":"null-co","size":1.5}}',
  '{"execute":"blockdev-add","arguments":{"driver":"null-co","size":null}}',
  '{"execute":"blockdev-add","arguments":{"driver":"null-co","read-zeroes":1}}',
  '{"execute":"blockdev-add","arguments":{"driver":"null-co","node-name":[]}}',
  '{"execute":"blockdev-add","arguments":{"driver":"null-co","cache":{"direct":"on"}}}',
  '{"execute":"blockdev-add","arguments":{"driver":"null-co","cache":{"x":1}}}',
  '{"execute":"blockdev-add","arguments":{"driver":"null-co","discard":"maybe"}}',
  '{"execute":"blockdev-add","arguments":{"driver":null}}',
  '{"execute":"blockdev-add","arguments":{"driver":"raw"}}',
  '{"execute":"blockdev-add","arguments":{"driver":"raw","file":7}}',
  '{"execute":"blockdev-add","arguments":{"driver":"raw","file":null}}',
  '{"execute":"blockdev-add","arguments":{"driver":"raw","file":{"driver":"file"}}}',
  '{"execute":"blockdev-add","arguments":{"driver":"raw","file":{"driver":"file","filename":"x","foo":1}}}',
  '{"execute":"block-dirty-bitmap-add","arguments":{"node":"x","name":"b","granularity":-1}}',
  '{"execute":"block-dirty-bitmap-add","arguments":{"node":"x","name":"b","granularity":1.5}}',
  '{"execute":"block-dirty-bitmap-add","arguments":{"node":"x","name":"b","granularity":4294967296}}',
  '{"execute":"block-dirty-bitmap-merge","arguments":{"node":"x","target":"b","bitmaps":"c"}}',
  '{"execute":"block-dirty-bitmap-merge","arguments":{"node":"x","target":"b","bitmaps":[1]}}',
  '{"execute":"block-dirty-bitmap-merge","arguments":{"node":"x","target":"b","bitmaps":[{"node":"x"}]}}',
  '{"execute":"nbd-server-start","arguments":{"addr":{"type":"unix","data":{"path":"/q","x":1}}}}',
  '{"execute":"nbd-server-start","arguments":{"addr":{"type":"unix"}}}',
  '{"execute":"nbd-server-start","arguments":{"addr":{"type":"q"}}}',
];

/** See the module's head. */
export const inputScripts: Record<string, Script> = {
  "bad and odd JSON, wrong requests and arguments": async (side) => {
    // After an error all is skipped up to the end of a line, which the text may have swallowed.
    for (const text of TEXTS) await side.raw(`${text}\n\n`);
  },
  "several commands in one piece, one command in many": async (side) => {
    await side.raw('{"execute":"query-jobs","id":1}{"execute":"query-block","id":2} 7 []\n', 4);
    for (const char of '{"execute":"query-jobs","id":"ä€😀"') {
      await side.raw(char, 0);
    }
    await side.raw("}");
  },
  "what is skipped after an error": async (side) => {
    await side.raw('01 {"execute":"query-jobs","id":1}\n', 2);
    await side.raw('@@@ xyz 5 {"execute":"query-jobs","id":2}\n', 2);
    await side.raw('@ "a" , {"execute":"query-jobs","id":3}\n', 2 + 1);
    await side.raw(new Uint8Array([0xff, 0x0a]));
    await side.raw(new Uint8Array([0x22, 0xc3, 0x28, 0x22, 0x0a]));
    await side.raw(new Uint8Array([0x22, 0x01, 0x22, 0x0a]));
    await side.run("query-jobs");
  },
  "deep nesting": async (side) => {
    await side.raw(`${"[".repeat(1024)}${"]".repeat(1024)}\n`);
    await side.raw(`${"[".repeat(1025)}\n`);
    await side.run("query-jobs");
    await side.raw(`{"execute":"query-jobs","id":${"[".repeat(1000)}${"]".repeat(1000)}}\n`);
  },
};
