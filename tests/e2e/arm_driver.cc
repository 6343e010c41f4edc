// Runs one function of a compiled library on raw binary files, through TVM's runtime alone: no Python, no compiler.
//
//   arm_driver LIBRARY FUNCTION in:DTYPE:D0xD1x...:FILE ... out:DTYPE:D0xD1x...:FILE ... derived:DTYPE:D0xD1x...: ...
//
// derived: constants that the library makes at load, all that its derive_constants gives, for a function that takes all.
// Buffers are placed 4 bytes (one float) past a 64-byte boundary on purpose: kernels must accept any alignment.
#include <tvm/ffi/container/tensor.h>
#include <tvm/ffi/extra/module.h>
#include <tvm/ffi/function.h>

#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iostream>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

namespace ffi = tvm::ffi;

struct MisalignedAllocator {
  void AllocData(DLTensor* tensor) {
    block = std::aligned_alloc(64, (ffi::GetDataSize(*tensor) + 4 + 63) / 64 * 64);
    if (block == nullptr) throw std::bad_alloc();
    tensor->data = static_cast<char*>(block) + 4;
  }
  void FreeData(DLTensor*) { std::free(block); }
  void* block = nullptr;
};

struct Argument {
  std::string kind;
  std::string file;
  ffi::Tensor tensor;
};

std::vector<std::string> Split(const std::string& text, char separator) {
  std::vector<std::string> parts;
  std::stringstream stream(text);
  for (std::string part; std::getline(stream, part, separator);) parts.push_back(part);
  return parts;
}

Argument ParseArgument(const std::string& text) {
  std::vector<std::string> parts = Split(text, ':');
  if (parts.size() == 3 && parts[0] == "derived") parts.emplace_back();
  if (parts.size() != 4 || (parts[0] != "in" && parts[0] != "out" && parts[0] != "derived")) throw std::runtime_error("bad argument " + text);
  std::vector<int64_t> shape;
  for (const std::string& extent : Split(parts[2], 'x')) shape.push_back(std::stoll(extent));
  DLDataType dtype = ffi::StringToDLDataType(parts[1]);
  return {parts[0], parts[3],
          ffi::Tensor::FromNDAlloc(MisalignedAllocator(), ffi::Shape(shape), dtype, DLDevice{kDLCPU, 0})};
}

int main(int argc, char** argv) try {
  if (argc < 4) throw std::runtime_error("usage: arm_driver LIBRARY FUNCTION in:... out:...");
  std::vector<Argument> arguments;
  for (int i = 3; i < argc; ++i) arguments.push_back(ParseArgument(argv[i]));
  std::vector<ffi::AnyView> packed;
  std::vector<ffi::AnyView> derived;
  for (const Argument& argument : arguments) {
    packed.push_back(argument.tensor);
    if (argument.kind == "derived") derived.push_back(argument.tensor);
    if (argument.kind != "in") continue;
    std::ifstream file(argument.file, std::ios::binary);
    file.read(static_cast<char*>(argument.tensor.data_ptr()), ffi::GetDataSize(argument.tensor));
    if (!file) throw std::runtime_error("cannot read " + argument.file);
  }
  ffi::Function load = ffi::Function::GetGlobalRequired("ffi.ModuleLoadFromFile");
  ffi::Module library = load(std::string(argv[1])).cast<ffi::Module>();
  ffi::Module machine = library->GetFunction("vm_load_executable").value()().cast<ffi::Module>();
  machine->GetFunction("vm_initialization").value()(static_cast<int>(kDLCPU), 0, 2 /* pooled allocator */);
  ffi::Any result;
  if (!derived.empty()) {
    machine->GetFunction("derive_constants").value().CallPacked(derived.data(), static_cast<int>(derived.size()), &result);
  }
  machine->GetFunction(argv[2]).value().CallPacked(packed.data(), static_cast<int>(packed.size()), &result);
  for (const Argument& argument : arguments) {
    if (argument.kind != "out") continue;
    std::ofstream file(argument.file, std::ios::binary);
    file.write(static_cast<const char*>(argument.tensor.data_ptr()), ffi::GetDataSize(argument.tensor));
    if (!file) throw std::runtime_error("cannot write " + argument.file);
  }
  return 0;
} catch (const std::exception& error) {
  std::cerr << error.what() << std::endl;
  return 1;
}
