// As much of CUDA as the kernels use, for g++: a kernel becomes a function that runs one thread.
//
// Kernels whose threads do not talk to each other run as plain loops. Kernels with warp shuffles run their 32 lanes
// as fibers: a lane stops at each shuffle until all lanes that are still running have come to it, as a warp does.
// A shuffle outside such a kernel, or one that only some lanes reach, aborts the program with a message.
#pragma once

#include <ucontext.h>

#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <string>
#include <tuple>
#include <type_traits>
#include <utility>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#endif

#define __device__
#define __global__
#define __forceinline__ inline
#define __launch_bounds__(...)

struct dim3 {
    unsigned int x = 1, y = 1, z = 1;
};
inline thread_local dim3 threadIdx, blockIdx, blockDim, gridDim;

struct alignas(16) float4 {
    float x, y, z, w;
};
struct alignas(8) uint2 {
    unsigned int x, y;
};
struct alignas(16) uint4 {
    unsigned int x, y, z, w;
};
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }

template <typename T>
T __ldg(const T* p) {
    if (reinterpret_cast<std::uintptr_t>(p) % alignof(T)) std::abort();  // a GPU would trap
    return *p;
}

inline unsigned int __float_as_uint(float v) {
    unsigned int bits;
    std::memcpy(&bits, &v, 4);
    return bits;
}

inline unsigned int __funnelshift_r(unsigned int low, unsigned int high, unsigned int shift) {
    return static_cast<unsigned int>((static_cast<std::uint64_t>(high) << 32 | low) >> (shift & 31));
}

inline unsigned int __byte_perm(unsigned int a, unsigned int b, unsigned int selector) {
    const std::uint64_t bytes = static_cast<std::uint64_t>(b) << 32 | a;
    unsigned int result = 0;
    for (int i = 0; i < 4; ++i) {
        const unsigned int from = selector >> (4 * i) & 0x7;  // bit 3, replicate the sign, is not used
        result |= static_cast<unsigned int>(bytes >> (8 * from) & 0xff) << (8 * i);
    }
    return result;
}

inline unsigned short to_half_bits(float v) {
    const _Float16 half = static_cast<_Float16>(v);
    unsigned short bits;
    std::memcpy(&bits, &half, 2);
    return bits;
}
inline unsigned int to_half_bits2(float low, float high) {
    return to_half_bits(low) | static_cast<unsigned int>(to_half_bits(high)) << 16;
}
inline float from_half_bits(unsigned int bits) {
    const unsigned short low = static_cast<unsigned short>(bits);
    _Float16 half;
    std::memcpy(&half, &low, 2);
    return static_cast<float>(half);
}

inline void must_align(const void* p, std::uintptr_t bytes) {
    if (reinterpret_cast<std::uintptr_t>(p) % bytes) std::abort();  // a GPU would trap
}
inline void store_vector(float* p, float a, float b, float c, float d) {
    must_align(p, 16);
    p[0] = a, p[1] = b, p[2] = c, p[3] = d;
}
inline void store_vector(void* p, unsigned int a, unsigned int b) {
    must_align(p, 8);
    const unsigned int words[2] = {a, b};
    std::memcpy(p, words, 8);
}

inline int atomicAdd(int* p, int n) { return __atomic_fetch_add(p, n, __ATOMIC_RELAXED); }

[[noreturn]] inline void die(const char* message) {
    std::fprintf(stderr, "cuda shim: %s\n", message);
    std::abort();
}

// The lanes of one warp as fibers, resumed in turn.
class Warp {
  public:
    static constexpr int kLanes = 32;
    static constexpr std::size_t kStack = 256 * 1024;

    void run(const std::function<void(int)>& lane_function) {
        function_ = &lane_function;
        current() = this;
        for (int lane = 0; lane < kLanes; ++lane) {
            done_[lane] = false;
            getcontext(&lanes_[lane]);
            lanes_[lane].uc_stack.ss_sp = stack(lane);
            lanes_[lane].uc_stack.ss_size = kStack;
            lanes_[lane].uc_link = nullptr;
            makecontext(&lanes_[lane], reinterpret_cast<void (*)()>(&Warp::enter), 0);
        }
        for (;;) {
            int finished = 0;
            for (lane_ = 0; lane_ < kLanes; ++lane_) {
                if (!done_[lane_]) to_lane();
                finished += done_[lane_];
            }
            if (finished == kLanes) break;
            if (finished) die("a shuffle that not all lanes of the warp reach");
            seen_ = values_;  // all lanes have come to the shuffle: their values may be read
        }
        current() = nullptr;
    }

    // The value that lane `source` brought to this shuffle.
    static float exchange(unsigned int mask, float value, int source) {
        Warp* warp = current();
        if (!warp) die("a shuffle in a kernel that was not started as one of warps");
        if (mask != 0xffffffffu) die("a shuffle of part of a warp");
        warp->values_[warp->lane_] = value;
        warp->to_scheduler(false);
        return warp->seen_[source & 31];
    }

    static int lane() { return current()->lane_; }

  private:
    static Warp*& current() {
        static thread_local Warp* warp = nullptr;
        return warp;
    }

    static void enter() {
        Warp* warp = current();
#if defined(__SANITIZE_ADDRESS__)
        __sanitizer_finish_switch_fiber(nullptr, &warp->main_bottom_, &warp->main_size_);
#endif
        (*warp->function_)(warp->lane_);
        warp->done_[warp->lane_] = true;
        warp->to_scheduler(true);
    }

    void to_lane() {
        restore_thread(lane_);
#if defined(__SANITIZE_ADDRESS__)
        void* fake = nullptr;
        __sanitizer_start_switch_fiber(&fake, stack(lane_), kStack);
#endif
        swapcontext(&main_, &lanes_[lane_]);
#if defined(__SANITIZE_ADDRESS__)
        __sanitizer_finish_switch_fiber(fake, nullptr, nullptr);
#endif
    }

    void to_scheduler([[maybe_unused]] bool last) {
#if defined(__SANITIZE_ADDRESS__)
        void* fake = nullptr;
        __sanitizer_start_switch_fiber(last ? nullptr : &fake, main_bottom_, main_size_);
#endif
        swapcontext(&lanes_[lane_], &main_);
#if defined(__SANITIZE_ADDRESS__)
        __sanitizer_finish_switch_fiber(fake, &main_bottom_, &main_size_);
#endif
    }

    void restore_thread(int lane);
    char* stack(int lane) { return stacks_.get() + lane * kStack; }

    std::unique_ptr<char[]> stacks_{new char[kLanes * kStack]};
    std::array<ucontext_t, kLanes> lanes_;
    ucontext_t main_;
    std::array<bool, kLanes> done_;
    std::array<float, kLanes> values_, seen_;
    const std::function<void(int)>* function_ = nullptr;
    int lane_ = 0;

  public:
    int first_thread = 0;  // of the warp in its block, along x

  private:
    const void* main_bottom_ = nullptr;
    std::size_t main_size_ = 0;
};

inline void Warp::restore_thread(int lane) { threadIdx.x = static_cast<unsigned int>(first_thread + lane); }

inline float __shfl_xor_sync(unsigned int mask, float value, int with) {
    return Warp::exchange(mask, value, Warp::lane() ^ with);
}
inline float __shfl_sync(unsigned int mask, float value, int source) { return Warp::exchange(mask, value, source); }

// The letter of a parameter's type, as host_build.py names NumPy's.
template <typename T>
constexpr char letter() {
    if (std::is_pointer_v<T>) return 'P';
    if (std::is_same_v<T, int>) return 'i';
    if (std::is_same_v<T, long long>) return 'q';
    if (std::is_same_v<T, float>) return 'f';
    return '?';
}

template <typename... P>
std::string signature(void (*)(P...)) {
    return std::string{letter<P>()...};
}

template <bool kWarps, typename... P, std::size_t... I>
void run_grid(void (*kernel)(P...), const unsigned int* grid, const unsigned int* block, void** arguments,
              std::index_sequence<I...>) {
    const std::tuple<P...> values{*static_cast<P*>(arguments[I])...};
    gridDim = {grid[0], grid[1], grid[2]};
    blockDim = {block[0], block[1], block[2]};
    std::unique_ptr<Warp> warp;
    if (kWarps) {
        if (block[0] % 32 || block[1] != 1 || block[2] != 1) die("a kernel of warps wants blocks of whole warps");
        warp = std::make_unique<Warp>();
    }
    for (unsigned int bz = 0; bz < grid[2]; ++bz)
        for (unsigned int by = 0; by < grid[1]; ++by)
            for (unsigned int bx = 0; bx < grid[0]; ++bx) {
                blockIdx = {bx, by, bz};
                if (kWarps) {
                    threadIdx = {0, 0, 0};
                    for (unsigned int first = 0; first < block[0]; first += 32) {
                        warp->first_thread = static_cast<int>(first);
                        warp->run([&](int) { kernel(std::get<I>(values)...); });
                    }
                    continue;
                }
                for (unsigned int tz = 0; tz < block[2]; ++tz)
                    for (unsigned int ty = 0; ty < block[1]; ++ty)
                        for (unsigned int tx = 0; tx < block[0]; ++tx) {
                            threadIdx = {tx, ty, tz};
                            kernel(std::get<I>(values)...);
                        }
            }
}

template <bool kWarps, typename... P>
void run(void (*kernel)(P...), const unsigned int* grid, const unsigned int* block, void** arguments) {
    run_grid<kWarps>(kernel, grid, block, arguments, std::index_sequence_for<P...>{});
}

// What host_build.py calls: `host_NAME` runs a launch, `signature_NAME` says what it takes.
#define CUDA_HOST_ENTRY(name, warps)                                                                        \
    extern "C" void host_##name(const unsigned int* grid, const unsigned int* block, void** arguments) {    \
        run<warps>(&name, grid, block, arguments);                                                          \
    }                                                                                                       \
    extern "C" const char* signature_##name() {                                                             \
        static const std::string letters = signature(&name);                                                \
        return letters.c_str();                                                                             \
    }
