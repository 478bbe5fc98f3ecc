// PTX made into C++ that a compiler of the machine takes.
#pragma once
#include <map>
#include <string>
#include <vector>

struct Parameter { size_t offset, size; };

struct Entry {
    std::string source; // a function `Kernel run` over thread.h
    std::vector<Parameter> parameters;
    size_t parameters_size = 0, shared_size = 0;
    bool waits = false; // whether threads do anything together
};

// The kernels of a module; each is translated when it is asked for.
class Module {
  public:
    explicit Module(const std::string &ptx);
    bool has(const std::string &name) const { return entries.count(name) > 0; }
    // Throws std::runtime_error, with the instruction, where there is one that is not known.
    Entry translate(const std::string &name) const;

  private:
    std::string text;
    std::map<std::string, size_t> entries; // where each begins
    std::string globals;                   // constants of the module, as C++
    std::map<std::string, std::pair<size_t, size_t>> shared; // of the module: where, how many bytes
    size_t shared_size = 0;
};
