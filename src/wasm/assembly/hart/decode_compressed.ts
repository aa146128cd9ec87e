/**
 * The C extension: each 16-bit instruction is rewritten to the 32-bit instruction it abbreviates
 * (Unpriv 28). Reserved encodings give 0, which no 32-bit instruction is.
 */

const OPCODE_LOAD: u32 = 0x03;
const OPCODE_LOAD_FP: u32 = 0x07;
const OPCODE_OP_IMM: u32 = 0x13;
const OPCODE_OP_IMM_32: u32 = 0x1b;
const OPCODE_STORE: u32 = 0x23;
const OPCODE_STORE_FP: u32 = 0x27;
const OPCODE_OP: u32 = 0x33;
const OPCODE_LUI: u32 = 0x37;
const OPCODE_OP_32: u32 = 0x3b;
const OPCODE_BRANCH: u32 = 0x63;
const OPCODE_JALR: u32 = 0x67;
const OPCODE_JAL: u32 = 0x6f;
const EBREAK: u32 = 0x00100073;

/** The 32-bit form of `half`, or 0 if it has none. */
export function expandCompressed(half: u32): u32 {
  const funct3 = (half >> 13) & 7;
  switch (half & 3) {
    case 0:
      return expandQuadrant0(half, funct3);
    case 1:
      return expandQuadrant1(half, funct3);
    default:
      return expandQuadrant2(half, funct3);
  }
}

/** Bits `from`.. of `half`, `count` of them, moved to bit `to`. */

function move(half: u32, from: u32, count: u32, to: u32): u32 {
  return ((half >> from) & ((1 << count) - 1)) << to;
}

function typeI(opcode: u32, funct3: u32, rd: u32, rs1: u32, imm: u32): u32 {
  return (imm << 20) | (rs1 << 15) | (funct3 << 12) | (rd << 7) | opcode;
}

function typeR(opcode: u32, funct3: u32, funct7: u32, rd: u32, rs1: u32, rs2: u32): u32 {
  return (funct7 << 25) | (rs2 << 20) | (rs1 << 15) | (funct3 << 12) | (rd << 7) | opcode;
}

function typeS(opcode: u32, funct3: u32, rs1: u32, rs2: u32, imm: u32): u32 {
  return ((imm >> 5) << 25) | (rs2 << 20) | (rs1 << 15) | (funct3 << 12) | ((imm & 31) << 7) |
    opcode;
}

function typeB(funct3: u32, rs1: u32, imm: u32): u32 {
  return (((imm >> 12) & 1) << 31) | (((imm >> 5) & 63) << 25) | (rs1 << 15) | (funct3 << 12) |
    (((imm >> 1) & 15) << 8) | (((imm >> 11) & 1) << 7) | OPCODE_BRANCH;
}

/** The six-bit immediate of CI, sign-extended. */

function immCi(half: u32): u32 {
  return <u32> ((<i32> (move(half, 12, 1, 5) | move(half, 2, 5, 0)) << 26) >> 26);
}

function shamtCi(half: u32): u32 {
  return move(half, 12, 1, 5) | move(half, 2, 5, 0);
}

/** Offsets of word and double-word accesses with a register base. */

function offsetWord(half: u32): u32 {
  return move(half, 10, 3, 3) | move(half, 6, 1, 2) | move(half, 5, 1, 6);
}

function offsetDouble(half: u32): u32 {
  return move(half, 10, 3, 3) | move(half, 5, 2, 6);
}

function expandQuadrant0(half: u32, funct3: u32): u32 {
  const rdShort = 8 + ((half >> 2) & 7);
  const rs1Short = 8 + ((half >> 7) & 7);
  switch (funct3) {
    case 0: { // c.addi4spn
      const imm = move(half, 11, 2, 4) | move(half, 7, 4, 6) | move(half, 6, 1, 2) |
        move(half, 5, 1, 3);
      return imm === 0 ? 0 : typeI(OPCODE_OP_IMM, 0, rdShort, 2, imm);
    }
    case 1: // c.fld
      return typeI(OPCODE_LOAD_FP, 3, rdShort, rs1Short, offsetDouble(half));
    case 2: // c.lw
      return typeI(OPCODE_LOAD, 2, rdShort, rs1Short, offsetWord(half));
    case 3: // c.ld
      return typeI(OPCODE_LOAD, 3, rdShort, rs1Short, offsetDouble(half));
    case 5: // c.fsd
      return typeS(OPCODE_STORE_FP, 3, rs1Short, rdShort, offsetDouble(half));
    case 6: // c.sw
      return typeS(OPCODE_STORE, 2, rs1Short, rdShort, offsetWord(half));
    case 7: // c.sd
      return typeS(OPCODE_STORE, 3, rs1Short, rdShort, offsetDouble(half));
    default:
      return 0;
  }
}

function expandQuadrant1(half: u32, funct3: u32): u32 {
  const rd = (half >> 7) & 31;
  switch (funct3) {
    case 0: // c.addi, c.nop
      return typeI(OPCODE_OP_IMM, 0, rd, rd, immCi(half));
    case 1: // c.addiw
      return rd === 0 ? 0 : typeI(OPCODE_OP_IMM_32, 0, rd, rd, immCi(half));
    case 2: // c.li
      return typeI(OPCODE_OP_IMM, 0, rd, 0, immCi(half));
    case 3:
      return expandLuiAddi16sp(half, rd);
    case 4:
      return expandArithmetic(half);
    case 5:
      return expandJump(half);
    default: { // c.beqz, c.bnez
      const imm = (0 - move(half, 12, 1, 8)) | move(half, 10, 2, 3) | move(half, 5, 2, 6) |
        move(half, 3, 2, 1) | move(half, 2, 1, 5);
      return typeB(funct3 - 6, 8 + ((half >> 7) & 7), imm);
    }
  }
}

function expandLuiAddi16sp(half: u32, rd: u32): u32 {
  if (rd === 2) { // c.addi16sp
    const imm = (0 - move(half, 12, 1, 9)) | move(half, 6, 1, 4) | move(half, 5, 1, 6) |
      move(half, 3, 2, 7) | move(half, 2, 1, 5);
    return imm === 0 ? 0 : typeI(OPCODE_OP_IMM, 0, 2, 2, imm);
  }
  const imm = immCi(half);
  return imm === 0 ? 0 : (imm << 12) | (rd << 7) | OPCODE_LUI;
}

function expandArithmetic(half: u32): u32 {
  const rd = 8 + ((half >> 7) & 7);
  const rs2 = 8 + ((half >> 2) & 7);
  switch ((half >> 10) & 3) {
    case 0: // c.srli
      return typeI(OPCODE_OP_IMM, 5, rd, rd, shamtCi(half));
    case 1: // c.srai
      return typeI(OPCODE_OP_IMM, 5, rd, rd, shamtCi(half) | 0x400);
    case 2: // c.andi
      return typeI(OPCODE_OP_IMM, 7, rd, rd, immCi(half));
    default:
      break;
  }
  const funct2 = (half >> 5) & 3;
  if ((half >> 12) & 1) {
    if (funct2 === 0) return typeR(OPCODE_OP_32, 0, 0x20, rd, rd, rs2); // c.subw
    if (funct2 === 1) return typeR(OPCODE_OP_32, 0, 0, rd, rd, rs2); // c.addw
    return 0;
  }
  if (funct2 === 0) return typeR(OPCODE_OP, 0, 0x20, rd, rd, rs2); // c.sub
  if (funct2 === 1) return typeR(OPCODE_OP, 4, 0, rd, rd, rs2); // c.xor
  if (funct2 === 2) return typeR(OPCODE_OP, 6, 0, rd, rd, rs2); // c.or
  return typeR(OPCODE_OP, 7, 0, rd, rd, rs2); // c.and
}

function expandJump(half: u32): u32 {
  const imm = (0 - move(half, 12, 1, 11)) | move(half, 11, 1, 4) | move(half, 9, 2, 8) |
    move(half, 8, 1, 10) | move(half, 7, 1, 6) | move(half, 6, 1, 7) | move(half, 3, 3, 1) |
    move(half, 2, 1, 5);
  return (((imm >> 20) & 1) << 31) | (((imm >> 1) & 0x3ff) << 21) | (((imm >> 11) & 1) << 20) |
    (imm & 0xff000) | OPCODE_JAL;
}

function expandQuadrant2(half: u32, funct3: u32): u32 {
  const rd = (half >> 7) & 31;
  const rs2 = (half >> 2) & 31;
  switch (funct3) {
    case 0: // c.slli
      return typeI(OPCODE_OP_IMM, 1, rd, rd, shamtCi(half));
    case 1: // c.fldsp
      return typeI(OPCODE_LOAD_FP, 3, rd, 2, offsetDoubleSp(half));
    case 2: { // c.lwsp
      const offset = move(half, 12, 1, 5) | move(half, 4, 3, 2) | move(half, 2, 2, 6);
      return rd === 0 ? 0 : typeI(OPCODE_LOAD, 2, rd, 2, offset);
    }
    case 3: // c.ldsp
      return rd === 0 ? 0 : typeI(OPCODE_LOAD, 3, rd, 2, offsetDoubleSp(half));
    case 4:
      return expandJumpMoveAdd(half, rd, rs2);
    case 5: // c.fsdsp
      return typeS(OPCODE_STORE_FP, 3, 2, rs2, move(half, 10, 3, 3) | move(half, 7, 3, 6));
    case 6: // c.swsp
      return typeS(OPCODE_STORE, 2, 2, rs2, move(half, 9, 4, 2) | move(half, 7, 2, 6));
    default: // c.sdsp
      return typeS(OPCODE_STORE, 3, 2, rs2, move(half, 10, 3, 3) | move(half, 7, 3, 6));
  }
}

function offsetDoubleSp(half: u32): u32 {
  return move(half, 12, 1, 5) | move(half, 5, 2, 3) | move(half, 2, 3, 6);
}

function expandJumpMoveAdd(half: u32, rd: u32, rs2: u32): u32 {
  if (((half >> 12) & 1) === 0) {
    if (rs2 !== 0) return typeR(OPCODE_OP, 0, 0, rd, 0, rs2); // c.mv
    return rd === 0 ? 0 : typeI(OPCODE_JALR, 0, 0, rd, 0); // c.jr
  }
  if (rs2 !== 0) return typeR(OPCODE_OP, 0, 0, rd, rd, rs2); // c.add
  return rd === 0 ? EBREAK : typeI(OPCODE_JALR, 0, 1, rd, 0); // c.jalr
}
