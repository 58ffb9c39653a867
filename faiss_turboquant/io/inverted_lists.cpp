#include <faiss_turboquant/io/inverted_lists.h>

#include <sys/stat.h>

#include <algorithm>
#include <numeric>
#include <string>
#include <vector>

#include <faiss/impl/FaissAssert.h>
#include <faiss/index_io.h>
#include <faiss/invlists/OnDiskInvertedLists.h>

#include <faiss_turboquant/io/fields.h>
#include <faiss_turboquant/io/mapping.h>

namespace faiss_turboquant {

namespace {

using faiss::idx_t;
using faiss::OnDiskInvertedLists;

/// what stands in the record before the lists themselves
enum Place : uint8_t {
    nowhere = 0, ///< there are none
    in_array = 1,
    in_other_file = 2,
};

/// entries that a list of this size has room for
size_t capacity_of(size_t size, size_t code_size) {
    const size_t step = sizeof(idx_t) / std::gcd(code_size, sizeof(idx_t));
    return (size + step - 1) / step * step;
}

/// where each list is in the array, and how long that is
uint64_t lay_out(
        std::vector<faiss::OnDiskOneList>& lists,
        const std::vector<uint64_t>& sizes,
        size_t code_size) {
    uint64_t offset = 0;
    lists.resize(sizes.size());
    for (size_t i = 0; i < sizes.size(); i++) {
        lists[i].size = sizes[i];
        lists[i].capacity = capacity_of(sizes[i], code_size);
        lists[i].offset = offset;
        offset += lists[i].capacity * (code_size + sizeof(idx_t));
    }
    return offset;
}

void write_one_list(
        faiss::IOWriter& f,
        const faiss::InvertedLists& lists,
        size_t list_no) {
    const size_t n = lists.list_size(list_no), code_size = lists.code_size;
    const size_t n_free = capacity_of(n, code_size) - n;
    const std::vector<uint8_t> zeros(
            n_free * std::max(code_size, sizeof(idx_t)));
    if (n > 0) {
        faiss::InvertedLists::ScopedCodes codes(&lists, list_no);
        faiss::InvertedLists::ScopedIds ids(&lists, list_no);
        write_bytes(f, codes.get(), n * code_size);
        write_bytes(f, zeros.data(), n_free * code_size);
        write_bytes(f, ids.get(), n * sizeof(idx_t));
        write_bytes(f, zeros.data(), n_free * sizeof(idx_t));
    }
}

void write_other_file(faiss::IOWriter& f, const OnDiskInvertedLists& lists) {
    for (const faiss::OnDiskOneList& list : lists.lists) {
        write_value<uint64_t>(f, list.size);
        write_value<uint64_t>(f, list.capacity);
        write_value<uint64_t>(f, list.offset);
    }
    write_value<uint64_t>(f, lists.slots.size());
    for (const OnDiskInvertedLists::Slot& slot : lists.slots) {
        write_value<uint64_t>(f, slot.offset);
        write_value<uint64_t>(f, slot.capacity);
    }
    write_vector(f, lists.filename);
    write_value<uint64_t>(f, lists.totsize);
}

std::unique_ptr<faiss::InvertedLists> read_array_lists(
        ArrayReader& array,
        const std::vector<faiss::OnDiskOneList>& layout,
        size_t code_size) {
    auto lists = std::make_unique<faiss::ArrayInvertedLists>(
            layout.size(), code_size);
    std::vector<uint8_t> room;
    for (size_t i = 0; i < layout.size(); i++) {
        const size_t n = layout[i].size, n_free = layout[i].capacity - n;
        read_items(array, lists->codes[i], n * code_size, "lists");
        read_items(array, room, n_free * code_size, "lists");
        read_items(array, lists->ids[i], n, "lists");
        read_items(array, room, n_free * sizeof(idx_t), "lists");
    }
    array.finish();
    return lists;
}

/** @param begin  of the array in the mapped file */
std::unique_ptr<faiss::InvertedLists> map_lists(
        const MappedReader& file,
        size_t begin,
        const std::vector<faiss::OnDiskOneList>& layout,
        size_t code_size) {
    auto lists = std::make_unique<OnDiskInvertedLists>();
    lists->nlist = layout.size();
    lists->code_size = code_size;
    lists->read_only = true;
    lists->lists = layout;
    for (faiss::OnDiskOneList& list : lists->lists) {
        list.offset += begin;
    }
    // it unmaps its memory itself
    Mapping mapping(file.f);
    lists->totsize = mapping.size();
    lists->ptr = mapping.release();
    return lists;
}

std::unique_ptr<faiss::InvertedLists> read_lists(
        BlockReader& f,
        size_t nlist,
        size_t code_size) {
    std::vector<uint64_t> sizes;
    read_items(f, sizes, nlist, "sizes of lists");
    uint64_t n_left = f.left() / (code_size + sizeof(idx_t));
    for (uint64_t size : sizes) {
        if (size > n_left) {
            throw_cut_short(f.name, "lists");
        }
        n_left -= size;
    }
    std::vector<faiss::OnDiskOneList> layout;
    const uint64_t n_bytes = lay_out(layout, sizes, code_size);
    ArrayReader array = f.open_array("lists");
    if (array.size() != n_bytes) {
        throw_bad_value(f, "the size of lists", std::to_string(array.size()));
    }
    const uint8_t* view = f.mapped() ? array.view(1) : nullptr;
    return view ? map_lists(
                          *f.mapped(),
                          view - f.mapped()->mapping->data(),
                          layout,
                          code_size)
                : read_array_lists(array, layout, code_size);
}

/// of the file that FAISS would take with IO_FLAG_ONDISK_SAME_DIR
std::string in_same_directory(
        const std::string& index_name,
        const std::string& filename) {
    auto slash = index_name.find_last_of('/');
    const std::string directory =
            slash == std::string::npos ? "./" : index_name.substr(0, slash + 1);
    slash = filename.find_last_of('/');
    return directory +
            (slash == std::string::npos ? filename
                                        : filename.substr(slash + 1));
}

/// every list lies within the file
void check_places(BlockReader& f, const OnDiskInvertedLists& lists) {
    const uint64_t entry = lists.code_size + sizeof(idx_t);
    for (const faiss::OnDiskOneList& list : lists.lists) {
        const bool is_inside = list.size <= list.capacity &&
                list.capacity <= lists.totsize / entry &&
                (list.capacity == 0 ||
                 list.offset <= lists.totsize - list.capacity * entry);
        if (!is_inside) {
            throw_bad_value(
                    f, "the capacity of a list", std::to_string(list.capacity));
        }
    }
}

void check_other_file(BlockReader& f, const OnDiskInvertedLists& lists) {
    struct stat status;
    if (stat(lists.filename.c_str(), &status) != 0 ||
        uint64_t(status.st_size) < lists.totsize) {
        FAISS_THROW_MSG(
                "read_index: the inverted lists of " + quoted(f.name) +
                " are not in \"" + lists.filename + "\", or that is cut short");
    }
}

std::unique_ptr<faiss::InvertedLists> read_other_file(
        BlockReader& f,
        size_t nlist,
        size_t code_size,
        int io_flags) {
    auto lists = std::make_unique<OnDiskInvertedLists>();
    lists->nlist = nlist;
    lists->code_size = code_size;
    lists->read_only = io_flags & faiss::IO_FLAG_READ_ONLY;
    for (size_t i = 0; i < nlist; i++) {
        faiss::OnDiskOneList list;
        list.size = read_value<uint64_t>(f, "size of a list");
        list.capacity = read_value<uint64_t>(f, "capacity of a list");
        list.offset = read_value<uint64_t>(f, "offset of a list");
        lists->lists.push_back(list);
    }
    const auto n_slots = read_value<uint64_t>(f, "number of slots");
    for (uint64_t i = 0; i < n_slots; i++) {
        const auto offset = read_value<uint64_t>(f, "offset of a slot");
        const auto capacity = read_value<uint64_t>(f, "capacity of a slot");
        lists->slots.emplace_back(offset, capacity);
    }
    read_vector(f, lists->filename, "file name of lists");
    if (io_flags & faiss::IO_FLAG_ONDISK_SAME_DIR) {
        lists->filename = in_same_directory(f.name, lists->filename);
    }
    lists->totsize = read_value<uint64_t>(f, "size of the file of lists");
    const bool is_skipped = (io_flags & faiss::IO_FLAG_SKIP_IVF_DATA) &&
            (io_flags & faiss::IO_FLAG_MMAP) != faiss::IO_FLAG_MMAP;
    if (!is_skipped) {
        check_places(f, *lists);
        if (lists->totsize > 0) {
            check_other_file(f, *lists);
            lists->do_mmap();
        }
    }
    return lists;
}

} // namespace

void write_inverted_lists(BlockWriter& f, const faiss::InvertedLists* lists) {
    auto on_disk = dynamic_cast<const OnDiskInvertedLists*>(lists);
    if (!lists) {
        write_value<uint8_t>(f, nowhere);
    } else if (on_disk && !on_disk->filename.empty()) {
        write_value<uint8_t>(f, in_other_file);
        write_other_file(f, *on_disk);
    } else {
        write_value<uint8_t>(f, in_array);
        for (size_t i = 0; i < lists->nlist; i++) {
            write_value<uint64_t>(f, lists->list_size(i));
        }
        f.write_array([&](faiss::IOWriter& out) {
            for (size_t i = 0; i < lists->nlist; i++) {
                write_one_list(out, *lists, i);
            }
        });
    }
}

std::unique_ptr<faiss::InvertedLists> read_inverted_lists(
        BlockReader& f,
        size_t nlist,
        size_t code_size,
        int io_flags) {
    switch (read_within<uint8_t>(f, "place of lists", 0, in_other_file)) {
        case nowhere:
            return nullptr;
        case in_array:
            return read_lists(f, nlist, code_size);
        default:
            return read_other_file(f, nlist, code_size, io_flags);
    }
}

} // namespace faiss_turboquant
