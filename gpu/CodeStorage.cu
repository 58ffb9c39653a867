#include <gpu/CodeStorage.h>

#include <algorithm>
#include <cinttypes>
#include <cmath>

#include <faiss/impl/FaissAssert.h>

#include <gpu/kernels/sign_filter.h>
#include <gpu/transfers.h>

namespace faiss_turboquant {
namespace gpu {

namespace {

/// dst row i is src row sources[i]; 16 bytes at a time
__global__ void gather_rows_kernel(
        const uint4* planes,
        const float* scales,
        const float* offsets,
        const uint32_t* sources,
        size_t n,
        int row_words,
        uint4* planes_out,
        float* scales_out,
        float* offsets_out) {
    for (size_t i = blockIdx.x; i < n; i += gridDim.x) {
        if (sources[i] == CodeStorage::no_source) {
            continue;
        }
        const size_t row = sources[i];
        for (int j = threadIdx.x; j < row_words; j += blockDim.x) {
            planes_out[i * row_words + j] = planes[row * row_words + j];
        }
        if (threadIdx.x == 0) {
            scales_out[i] = scales[row];
            if (offsets) {
                offsets_out[i] = offsets[row];
            }
        }
    }
}

} // namespace

CodeStorage::CodeStorage(
        const GpuResources& resources,
        const TurboQuantizer& tq)
        : resources(resources) {
    encoder.layout = DeviceLayout(tq);
    DeviceRotation& rotation = encoder.rotation;
    rotation.d = int(tq.d);
    matrix = upload(resources, tq.rotation.matrix(), MemoryUse::index);
    rotation.matrix = matrix.data();
    if (tq.rotation.matrix().empty()) {
        rotation.run = run_of(tq.rotation);
        size_t first = 0; // coordinate of a block
        for (int b = 14; b >= 0; b--) {
            if (tq.d >> b & 1) {
                rotation.magnitudes[b] =
                        std::fabs(tq.rotation.multipliers()[first]);
                first += size_t(1) << b;
            }
        }
    }
    const auto by_warps = rotation_words(tq.rotation, max_part, rotation.run);
    words = upload(resources, by_warps, MemoryUse::index);
    rotation.words = words.data();
    DeviceRotation& by_block = encoder.rotation_by_block;
    by_block = rotation;
    by_block.part = part_of_block(rotation.d);
    const auto of_block =
            rotation_words(tq.rotation, by_block.part, rotation.run);
    words_by_block = upload(resources, of_block, MemoryUse::index);
    by_block.words = words_by_block.data();
    centre = upload(resources, tq.centre, MemoryUse::index);
    encoder.centre = centre.data();
    const auto& tables = tq.layout().tables;
    costs = upload(resources, tables.costs, MemoryUse::index);
    choices = upload(resources, tables.choices, MemoryUse::index);
    branches = upload(resources, tables.branches, MemoryUse::index);
    encoder.tables = {costs.data(), choices.data(), branches.data()};
    // the uploads read memory of tq and of this function
    resources.synchronize();
}

CodeStorage::Rows CodeStorage::make_rows(size_t n) const {
    constexpr MemoryUse use = MemoryUse::index;
    return {DeviceArray<uint8_t>(resources, n * layout().row_size(), use),
            DeviceArray<float>(resources, n, use),
            DeviceArray<float>(
                    resources,
                    layout().has_offset ? round_up(n, size_t(sign_rows_unit))
                                        : 0,
                    use)};
}

void CodeStorage::replace(Rows rows) {
    planes = std::move(rows.planes);
    scales = std::move(rows.scales);
    offsets = std::move(rows.offsets);
}

void CodeStorage::clear() {
    replace({});
}

void CodeStorage::reserve(size_t n, size_t used) {
    if (n <= capacity()) {
        return;
    }
    FAISS_THROW_IF_NOT_FMT(
            n <= max_rows,
            "TurboQuant: %zd vectors are more than the %zd that an index on "
            "a GPU may have",
            n,
            max_rows);
    Rows rows = make_rows(n);
    copy(resources,
         planes.data(),
         rows.planes.data(),
         used * layout().row_size());
    copy(resources, scales.data(), rows.scales.data(), used);
    if (layout().has_offset) {
        copy(resources, offsets.data(), rows.offsets.data(), used);
    }
    replace(std::move(rows));
}

void CodeStorage::import(
        const uint8_t* codes,
        size_t n,
        size_t code_size,
        size_t first) {
    const size_t page = std::max<size_t>(1, page_bytes / code_size);
    for (size_t done = 0; done < n; done += page) {
        const size_t count = std::min(page, n - done);
        const auto bytes =
                upload(resources, codes + done * code_size, count * code_size);
        import_codes(
                layout(),
                bytes.data(),
                count,
                planes_at(first + done),
                scales.data() + first + done,
                offsets_at(first + done),
                resources.stream());
    }
    resources.synchronize();
}

void CodeStorage::export_rows(
        size_t first,
        size_t n,
        size_t code_size,
        uint8_t* codes) const {
    const size_t page = std::max<size_t>(1, page_bytes / code_size);
    for (size_t done = 0; done < n; done += page) {
        const size_t count = std::min(page, n - done);
        DeviceArray<uint8_t> bytes(resources, count * code_size);
        export_codes(
                layout(),
                planes_at(first + done),
                scales.data() + first + done,
                offsets_at(first + done),
                count,
                bytes.data(),
                resources.stream());
        copy(resources,
             bytes.data(),
             codes + done * code_size,
             count * code_size);
    }
    resources.synchronize();
}

void CodeStorage::encode_rows(
        const float* x,
        size_t n,
        size_t first,
        const Placement* placement) {
    const int d = layout().d;
    const bool on_device = is_on_device(x, resources.device);
    const size_t page = on_device
            ? n
            : std::max<size_t>(1, page_bytes / (d * sizeof(float)));
    const size_t of_block = encode_workspace_of_block(layout());
    int blocks = encode_blocks(encoder, n);
    if (of_block > 0) {
        blocks = int(std::clamp<size_t>(
                resources.workspace_limit / of_block, 1, blocks));
    }
    DeviceArray<uint8_t> workspace(resources, blocks * of_block);
    Encoder of_page = encoder;
    if (placement) {
        of_page.centre = placement->centres;
    }
    InputCheck check(resources);
    for (size_t done = 0; done < n; done += page) {
        const size_t count = std::min(page, n - done);
        const Input<float> input(resources, x + done * d, count * d);
        if (placement) {
            of_page.rows = placement->rows + done;
            of_page.lists = placement->lists + done;
        }
        const size_t row = placement ? 0 : first + done;
        encode(of_page,
               input.data,
               count,
               done,
               planes_at(row),
               scales.data() + row,
               offsets_at(row),
               check.refused(),
               workspace.data(),
               int(std::min<size_t>(blocks, count)),
               resources.stream());
    }
    check.fetch();
    check_vectors(check);
}

DeviceCodes CodeStorage::codes(size_t n, const uint32_t* selected) const {
    DeviceCodes codes;
    codes.layout = layout();
    codes.planes = planes.data();
    codes.scales = scales.data();
    codes.offsets = offsets_at(0);
    codes.selected = selected;
    codes.n = uint32_t(n);
    return codes;
}

void CodeStorage::gather(const uint32_t* sources, size_t n, const Rows& to)
        const {
    if (n == 0) {
        return;
    }
    gather_rows_kernel<<<
            int(std::min<size_t>(n, 65536)),
            64,
            0,
            resources.stream()>>>(
            reinterpret_cast<const uint4*>(planes.data()),
            scales.data(),
            offsets_at(0),
            sources,
            n,
            int(layout().row_size() / sizeof(uint4)),
            reinterpret_cast<uint4*>(to.planes.data()),
            to.scales.data(),
            to.offsets.data());
    TQ_CUDA(cudaGetLastError());
}

void CodeStorage::keep_rows(const std::vector<uint32_t>& rows) {
    const size_t row_size = layout().row_size();
    const size_t page = std::max<size_t>(1, page_bytes / row_size);
    const Rows kept = make_rows(std::min(page, rows.size()));
    const auto on_device = upload(resources, rows);
    for (size_t first = 0; first < rows.size(); first += page) {
        const size_t count = std::min(page, rows.size() - first);
        gather(on_device.data() + first, count, kept);
        copy(resources, kept.planes.data(), planes_at(first), count * row_size);
        copy(resources, kept.scales.data(), scales.data() + first, count);
        if (layout().has_offset) {
            copy(resources, kept.offsets.data(), offsets_at(first), count);
        }
    }
    resources.synchronize(); // `rows` has been read
}

void CodeStorage::rearrange(const std::vector<uint32_t>& sources) {
    FAISS_THROW_IF_NOT_FMT(
            sources.size() <= max_rows,
            "TurboQuant: %zd rows are more than the %zd that an index on a GPU "
            "may have",
            sources.size(),
            max_rows);
    Rows rows = make_rows(sources.size());
    const auto on_device = upload(resources, sources);
    gather(on_device.data(), sources.size(), rows);
    resources.synchronize(); // `sources` has been read
    replace(std::move(rows));
}

} // namespace gpu
} // namespace faiss_turboquant
