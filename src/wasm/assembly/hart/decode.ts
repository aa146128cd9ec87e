/**
 * The decoder: a 32-bit instruction to an 8-byte slot (opcodes.ts). What is no instruction of this
 * processor decodes to OP_ILLEGAL, whose imm is the instruction for tval. Compressed instructions
 * are expanded to their 32-bit form first (decode_compressed.ts) and decoded with length 2.
 *
 * Instructions that only write a register, and write x0, become OP_NOP: handlers never test for x0.
 */

import { expandCompressed } from "./decode_compressed";
import * as op from "./opcodes";

/** Puts a slot together. Register fields are shifted to byte offsets here. */

export function makeSlot(opcode: u32, rd: u32, rs1: u32, rs2: u32, imm: u32, length: u32): u64 {
  const low = (opcode << 24) | (rs2 << 19) | (rs1 << 11) | (rd << 3) | length;
  return (<u64> imm << 32) | <u64> low;
}

/**
 * Decodes the instruction whose first half-word is the low half of `bits`, found at `pageOffset` of
 * a page; `isAlone`: it has no page around it (it straddles two), so no jump of it is near.
 */
export function decode(bits: u32, pageOffset: u32, isAlone: bool): u64 {
  if ((bits & 3) !== 3) {
    const half = bits & 0xffff;
    const expanded = expandCompressed(half);
    if (expanded === 0) return makeSlot(op.OP_ILLEGAL, 0, 0, 0, half, 2);
    return decodeWide(expanded, pageOffset, isAlone, 2, half);
  }
  return decodeWide(bits, pageOffset, isAlone, 4, bits);
}

// ---- fields -------------------------------------------------------------------------------------

function fieldRd(bits: u32): u32 {
  return (bits >> 7) & 31;
}

function fieldRs1(bits: u32): u32 {
  return (bits >> 15) & 31;
}

function fieldRs2(bits: u32): u32 {
  return (bits >> 20) & 31;
}

function immI(bits: u32): u32 {
  return <u32> (<i32> bits >> 20);
}

function immS(bits: u32): u32 {
  return (<u32> (<i32> bits >> 25) << 5) | ((bits >> 7) & 31);
}

function immB(bits: u32): u32 {
  return (<u32> (<i32> bits >> 31) << 12) | (((bits >> 7) & 1) << 11) | (((bits >> 25) & 63) << 5) |
    (((bits >> 8) & 15) << 1);
}

function immJ(bits: u32): u32 {
  return (<u32> (<i32> bits >> 31) << 20) | (bits & 0xff000) | (((bits >> 20) & 1) << 11) |
    (((bits >> 21) & 0x3ff) << 1);
}

// ---- major opcodes ------------------------------------------------------------------------------

function decodeWide(bits: u32, pageOffset: u32, isAlone: bool, length: u32, original: u32): u64 {
  let slot: u64 = 0;
  switch ((bits >> 2) & 31) {
    case 0x00:
      slot = decodeLoad(bits, length);
      break;
    case 0x01:
      slot = decodeFloatLoad(bits, length);
      break;
    case 0x03:
      slot = decodeFence(bits, length);
      break;
    case 0x04:
      slot = decodeOpImm(bits, length);
      break;
    case 0x05:
      slot = alu(op.OP_AUIPC, bits, bits & 0xfffff000, length);
      break;
    case 0x06:
      slot = decodeOpImm32(bits, length);
      break;
    case 0x08:
      slot = decodeStore(bits, length);
      break;
    case 0x09:
      slot = decodeFloatStore(bits, length);
      break;
    case 0x0b:
      slot = decodeAtomic(bits, length);
      break;
    case 0x0c:
      slot = decodeOp(bits, length);
      break;
    case 0x0d:
      slot = alu(op.OP_LI, bits, bits & 0xfffff000, length);
      break;
    case 0x0e:
      slot = alu(opcodeOfOp32(bits), bits, 0, length);
      break;
    case 0x10:
    case 0x11:
    case 0x12:
    case 0x13:
      // fmt 0 is S, 1 is D
      if (((bits >> 25) & 3) < 2) slot = whole(opcodeOfFma(bits), bits, length);
      break;
    case 0x14:
      if (((bits >> 25) & 3) < 2) slot = whole(opcodeOfFloat(bits), bits, length);
      break;
    case 0x18:
      slot = decodeBranch(bits, pageOffset, isAlone, length);
      break;
    case 0x19:
      if (((bits >> 12) & 7) === 0) {
        const opcode = fieldRd(bits) === 0 ? op.OP_JR : op.OP_JALR;
        slot = makeSlot(opcode, fieldRd(bits), fieldRs1(bits), 0, immI(bits), length);
      }
      break;
    case 0x1b:
      slot = decodeJal(bits, pageOffset, isAlone, length);
      break;
    case 0x1c:
      slot = decodeSystem(bits, length);
      break;
    default:
      break;
  }
  if (slot === 0) return makeSlot(op.OP_ILLEGAL, 0, 0, 0, original, length);
  return slot;
}

/** A slot that only writes rd: nothing at all when that is x0. 0 stays 0 (illegal). */
function alu(opcode: u32, bits: u32, imm: u32, length: u32): u64 {
  if (opcode === 0) return 0;
  const rd = fieldRd(bits);
  if (rd === 0) return makeSlot(op.OP_NOP, 0, 0, 0, 0, length);
  return makeSlot(opcode, rd, fieldRs1(bits), fieldRs2(bits), imm, length);
}

/** A slot whose handler looks at the instruction itself. */
function whole(opcode: u32, bits: u32, length: u32): u64 {
  return makeSlot(opcode, fieldRd(bits), fieldRs1(bits), fieldRs2(bits), bits, length);
}

/** Whether a jump of `distance` from `pageOffset` stays on the page. */

function isNear(pageOffset: u32, distance: u32, isAlone: bool): bool {
  return !isAlone && pageOffset + distance < 4096;
}

function decodeBranch(bits: u32, pageOffset: u32, isAlone: bool, length: u32): u64 {
  const funct3 = (bits >> 12) & 7;
  if (funct3 === 2 || funct3 === 3) return 0;
  const opcode = op.OP_BEQ + (funct3 < 2 ? funct3 : funct3 - 2);
  const distance = immB(bits);
  if (isNear(pageOffset, distance, isAlone)) {
    const imm = (distance - length) << 2;
    return makeSlot(opcode, 0, fieldRs1(bits), fieldRs2(bits), imm, length);
  }
  return makeSlot(opcode + 6, 0, fieldRs1(bits), fieldRs2(bits), distance, length);
}

function decodeJal(bits: u32, pageOffset: u32, isAlone: bool, length: u32): u64 {
  const rd = fieldRd(bits);
  const distance = immJ(bits);
  if (isNear(pageOffset, distance, isAlone)) {
    return makeSlot(rd === 0 ? op.OP_J : op.OP_JAL, rd, 0, 0, (distance - length) << 2, length);
  }
  return makeSlot(rd === 0 ? op.OP_J_FAR : op.OP_JAL_FAR, rd, 0, 0, distance, length);
}

function decodeLoad(bits: u32, length: u32): u64 {
  const funct3 = (bits >> 12) & 7;
  if (funct3 === 7) return 0;
  const rd = fieldRd(bits);
  if (rd === 0) {
    return makeSlot(op.OP_LOAD_X0, 0, fieldRs1(bits), funct3 & 3, immI(bits), length);
  }
  return makeSlot(op.OP_LB + funct3, rd, fieldRs1(bits), 0, immI(bits), length);
}

function decodeStore(bits: u32, length: u32): u64 {
  const funct3 = (bits >> 12) & 7;
  if (funct3 > 3) return 0;
  return makeSlot(op.OP_SB + funct3, 0, fieldRs1(bits), fieldRs2(bits), immS(bits), length);
}

function decodeFloatLoad(bits: u32, length: u32): u64 {
  const funct3 = (bits >> 12) & 7;
  if (funct3 !== 2 && funct3 !== 3) return 0;
  const opcode = funct3 === 2 ? op.OP_FLW : op.OP_FLD;
  return makeSlot(opcode, fieldRd(bits), fieldRs1(bits), 0, immI(bits), length);
}

function decodeFloatStore(bits: u32, length: u32): u64 {
  const funct3 = (bits >> 12) & 7;
  if (funct3 !== 2 && funct3 !== 3) return 0;
  const opcode = funct3 === 2 ? op.OP_FSW : op.OP_FSD;
  return makeSlot(opcode, 0, fieldRs1(bits), fieldRs2(bits), immS(bits), length);
}

function decodeFence(bits: u32, length: u32): u64 {
  const funct3 = (bits >> 12) & 7;
  if (funct3 === 0) {
    // Only a store before a load can be seen out of order by others, on the host as in wasm: the
    // rest costs nothing. Predecessor and successor sets, each I O R W (Unpriv 2.7).
    const storesBefore = ((bits >> 24) & 5) !== 0;
    const loadsAfter = ((bits >> 20) & 10) !== 0;
    return makeSlot(storesBefore && loadsAfter ? op.OP_FENCE : op.OP_NOP, 0, 0, 0, 0, length);
  }
  if (funct3 === 1) return makeSlot(op.OP_FENCE_I, 0, 0, 0, 0, length);
  return 0;
}

function decodeAtomic(bits: u32, length: u32): u64 {
  const funct3 = (bits >> 12) & 7;
  if (funct3 !== 2 && funct3 !== 3) return 0;
  const wide = funct3 - 2;
  const funct5 = bits >> 27;
  let opcode: u32 = op.OP_AMO_W + wide;
  if (funct5 === 2) {
    if (fieldRs2(bits) !== 0) return 0;
    opcode = op.OP_LR_W + wide;
  } else if (funct5 === 3) {
    opcode = op.OP_SC_W + wide;
  } else if (funct5 > 4 && (funct5 & 3) !== 0) {
    return 0;
  }
  return makeSlot(opcode, fieldRd(bits), fieldRs1(bits), fieldRs2(bits), funct5, length);
}

// ---- integer computation ------------------------------------------------------------------------

function decodeOpImm(bits: u32, length: u32): u64 {
  const shamt = (bits >> 20) & 63;
  const funct6 = bits >> 26;
  switch ((bits >> 12) & 7) {
    case 0:
      if (fieldRs1(bits) === 0) return alu(op.OP_LI, bits, immI(bits), length);
      if (immI(bits) === 0) return alu(op.OP_MV, bits, 0, length);
      return alu(op.OP_ADDI, bits, immI(bits), length);
    case 1:
      if (funct6 === 0x00) return alu(op.OP_SLLI, bits, shamt, length);
      if (funct6 === 0x0a) return alu(op.OP_BSETI, bits, shamt, length);
      if (funct6 === 0x12) return alu(op.OP_BCLRI, bits, shamt, length);
      if (funct6 === 0x1a) return alu(op.OP_BINVI, bits, shamt, length);
      if (funct6 === 0x18) return alu(opcodeOfUnary(shamt), bits, 0, length);
      return 0;
    case 2:
      return alu(op.OP_SLTI, bits, immI(bits), length);
    case 3:
      return alu(op.OP_SLTIU, bits, immI(bits), length);
    case 4:
      return alu(op.OP_XORI, bits, immI(bits), length);
    case 5:
      if (funct6 === 0x00) return alu(op.OP_SRLI, bits, shamt, length);
      if (funct6 === 0x10) return alu(op.OP_SRAI, bits, shamt, length);
      if (funct6 === 0x12) return alu(op.OP_BEXTI, bits, shamt, length);
      if (funct6 === 0x18) return alu(op.OP_RORI, bits, shamt, length);
      if (bits >> 20 === 0x287) return alu(op.OP_ORC_B, bits, 0, length);
      if (bits >> 20 === 0x6b8) return alu(op.OP_REV8, bits, 0, length);
      return 0;
    case 6:
      return alu(op.OP_ORI, bits, immI(bits), length);
    default:
      return alu(op.OP_ANDI, bits, immI(bits), length);
  }
}

/** Zbb's instructions with one operand: the shift amount's place says which. */
function opcodeOfUnary(shamt: u32): u32 {
  if (shamt === 0) return op.OP_CLZ;
  if (shamt === 1) return op.OP_CTZ;
  if (shamt === 2) return op.OP_CPOP;
  if (shamt === 4) return op.OP_SEXT_B;
  if (shamt === 5) return op.OP_SEXT_H;
  return 0;
}

function decodeOpImm32(bits: u32, length: u32): u64 {
  const shamt = (bits >> 20) & 31;
  const funct7 = bits >> 25;
  switch ((bits >> 12) & 7) {
    case 0:
      return alu(op.OP_ADDIW, bits, immI(bits), length);
    case 1:
      if (funct7 === 0x00) return alu(op.OP_SLLIW, bits, shamt, length);
      if (funct7 >> 1 === 0x02) return alu(op.OP_SLLI_UW, bits, (bits >> 20) & 63, length);
      if (funct7 === 0x30 && shamt === 0) return alu(op.OP_CLZW, bits, 0, length);
      if (funct7 === 0x30 && shamt === 1) return alu(op.OP_CTZW, bits, 0, length);
      if (funct7 === 0x30 && shamt === 2) return alu(op.OP_CPOPW, bits, 0, length);
      return 0;
    case 5:
      if (funct7 === 0x00) return alu(op.OP_SRLIW, bits, shamt, length);
      if (funct7 === 0x20) return alu(op.OP_SRAIW, bits, shamt, length);
      if (funct7 === 0x30) return alu(op.OP_RORIW, bits, shamt, length);
      return 0;
    default:
      return 0;
  }
}

/** OP; ADD from x0, which is what c.mv abbreviates, is a move. */
function decodeOp(bits: u32, length: u32): u64 {
  const opcode = opcodeOfOp(bits);
  if (opcode === op.OP_ADD && fieldRs1(bits) === 0 && fieldRd(bits) !== 0) {
    return makeSlot(op.OP_MV, fieldRd(bits), fieldRs2(bits), 0, 0, length);
  }
  return alu(opcode, bits, 0, length);
}

/** funct7 and funct3 of OP; 0 if there is no such instruction. */
function opcodeOfOp(bits: u32): u32 {
  const funct3 = (bits >> 12) & 7;
  switch (bits >> 25) {
    case 0x00:
      return pick8(
        funct3,
        op.OP_ADD,
        op.OP_SLL,
        op.OP_SLT,
        op.OP_SLTU,
        op.OP_XOR,
        op.OP_SRL,
        op.OP_OR,
        op.OP_AND,
      );
    case 0x01:
      return op.OP_MUL + funct3;
    case 0x05:
      return pick8(funct3, 0, 0, 0, 0, op.OP_MIN, op.OP_MINU, op.OP_MAX, op.OP_MAXU);
    case 0x10:
      return pick8(funct3, 0, 0, op.OP_SH1ADD, 0, op.OP_SH2ADD, 0, op.OP_SH3ADD, 0);
    case 0x14:
      return pick8(funct3, 0, op.OP_BSET, 0, 0, 0, 0, 0, 0);
    case 0x20:
      return pick8(funct3, op.OP_SUB, 0, 0, 0, op.OP_XNOR, op.OP_SRA, op.OP_ORN, op.OP_ANDN);
    case 0x24:
      return pick8(funct3, 0, op.OP_BCLR, 0, 0, 0, op.OP_BEXT, 0, 0);
    case 0x30:
      return pick8(funct3, 0, op.OP_ROL, 0, 0, 0, op.OP_ROR, 0, 0);
    case 0x34:
      return pick8(funct3, 0, op.OP_BINV, 0, 0, 0, 0, 0, 0);
    default:
      return 0;
  }
}

function opcodeOfOp32(bits: u32): u32 {
  const funct3 = (bits >> 12) & 7;
  switch (bits >> 25) {
    case 0x00:
      return pick8(funct3, op.OP_ADDW, op.OP_SLLW, 0, 0, 0, op.OP_SRLW, 0, 0);
    case 0x01:
      return pick8(funct3, op.OP_MULW, 0, 0, 0, op.OP_DIVW, op.OP_DIVUW, op.OP_REMW, op.OP_REMUW);
    case 0x04:
      return pick8(funct3, op.OP_ADD_UW, 0, 0, 0, fieldRs2(bits) === 0 ? op.OP_ZEXT_H : 0, 0, 0, 0);
    case 0x10:
      return pick8(funct3, 0, 0, op.OP_SH1ADD_UW, 0, op.OP_SH2ADD_UW, 0, op.OP_SH3ADD_UW, 0);
    case 0x20:
      return pick8(funct3, op.OP_SUBW, 0, 0, 0, 0, op.OP_SRAW, 0, 0);
    case 0x30:
      return pick8(funct3, 0, op.OP_ROLW, 0, 0, 0, op.OP_RORW, 0, 0);
    default:
      return 0;
  }
}

function pick8(i: u32, a: u32, b: u32, c: u32, d: u32, e: u32, f: u32, g: u32, h: u32): u32 {
  if (i < 4) return i < 2 ? (i === 0 ? a : b) : (i === 2 ? c : d);
  return i < 6 ? (i === 4 ? e : f) : (i === 6 ? g : h);
}

// ---- floating point: what the loop does itself, in its usual form -------------------------------

/** To nearest, or by frm: the loop does both only while frm says to nearest. */
function isUsualRounding(bits: u32): bool {
  const rm = (bits >> 12) & 7;
  return rm === 0 || rm === 7;
}

function opcodeOfFma(bits: u32): u32 {
  const isDouble = ((bits >> 25) & 3) === 1;
  return isDouble && isUsualRounding(bits) ? op.OP_FMADD_D + ((bits >> 2) & 3) : op.OP_FMA;
}

function opcodeOfFloat(bits: u32): u32 {
  const funct5 = bits >> 27;
  const isDouble = ((bits >> 25) & 3) === 1;
  if (funct5 < 4) {
    if (!isUsualRounding(bits)) return op.OP_FLOAT;
    return (isDouble ? op.OP_FADD_D : op.OP_FADD_S) + funct5;
  }
  return isDouble ? opcodeOfDouble(bits, funct5) : op.OP_FLOAT;
}

/** Moves, comparisons and the conversion that is always exact. */
function opcodeOfDouble(bits: u32, funct5: u32): u32 {
  const funct3 = (bits >> 12) & 7;
  const writesX0 = fieldRd(bits) === 0;
  if (funct5 === 0x04 && funct3 === 0) return op.OP_FSGNJ_D;
  if (funct5 === 0x14 && funct3 < 3 && !writesX0) return op.OP_FLE_D + funct3;
  if (fieldRs2(bits) !== 0) return op.OP_FLOAT;
  if (funct5 === 0x1c && funct3 === 0 && !writesX0) return op.OP_FMV_X_D;
  if (funct5 === 0x1e && funct3 === 0) return op.OP_FMV_D_X;
  if (funct5 === 0x1a && funct3 < 5) return op.OP_FCVT_D_W;
  return op.OP_FLOAT;
}

// ---- SYSTEM -------------------------------------------------------------------------------------

function decodeSystem(bits: u32, length: u32): u64 {
  const funct3 = (bits >> 12) & 7;
  if (funct3 === 4) return 0;
  if (funct3 !== 0) return whole(op.OP_CSR, bits, length);
  if (fieldRd(bits) !== 0) return 0;
  const funct7 = bits >> 25;
  // SFENCE.VMA, SINVAL.VMA (Priv 12.2.1, 16)
  if (funct7 === 0x09 || funct7 === 0x0b) return whole(op.OP_SFENCE_VMA, bits, length);
  if (fieldRs1(bits) !== 0) return 0;
  switch (bits >> 20) {
    case 0x000:
      return whole(op.OP_ECALL, bits, length);
    case 0x001:
      return whole(op.OP_EBREAK, bits, length);
    case 0x102:
      return whole(op.OP_SRET, bits, length);
    case 0x105:
      return whole(op.OP_WFI, bits, length);
    case 0x180:
    case 0x181:
      return whole(op.OP_SFENCE_INVAL, bits, length);
    case 0x302:
      return whole(op.OP_MRET, bits, length);
    default:
      return 0;
  }
}
